"""`driftgate serve` on loopback, with certificates, seal key and configuration of its own.

The cluster is whatever a kubeconfig leads to. Who calls the webhook, and why, is not known here.
"""

import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from webhook.admission import Webhook
from webhook.demo.leash import Leashed
from webhook.demo.terminal import Unexpected

_READY_SECONDS = 30.0


class Gate:
    """A running driftgate. `settings` go on top of its own configuration."""

    def __init__(
        self,
        directory: Path,
        *,
        settings: Mapping[str, Any] | None = None,
        progress: Callable[[str], object] | None = None,
    ) -> None:
        self.directory = directory
        self.port = _free_port()
        self.config_file = directory / "config.yaml"
        self.ca_file = directory / "certificates" / "ca.crt"
        self._settings = settings or {}
        self._progress: Callable[[str], object] = progress or (lambda _: None)
        self._serving: Leashed | None = None

    def equip(self, kubeconfig: Path, names: Sequence[str] = ("localhost",)) -> None:
        """Write the configuration; make certificates, for these names, and the seal key."""
        self._progress("making certificates")
        self.directory.mkdir(parents=True, exist_ok=True)
        certificates, key = str(self.directory / "certificates"), str(self.directory / "seal.key")
        settings: dict[str, Any] = {
            "cluster": "demo",
            "kubeconfig": str(kubeconfig),
            "state_directory": str(self.directory / "state"),
            "server": {"host": "127.0.0.1", "port": self.port, "certificates": certificates, "drain": "1s"},
            "break_glass": {"key_file": key},
        }
        for name, value in self._settings.items():
            settings[name] = {**settings.get(name, {}), **value} if isinstance(value, dict) else value
        self.config_file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        named = [option for name in names for option in ("--name", name)]
        self.driftgate("certs", *named, "--directory", certificates, "--seal-key", key)

    def start(self) -> None:
        """Start `driftgate serve` and wait until it is ready."""
        self._progress("starting driftgate serve")
        command = [sys.executable, "-m", "webhook", "serve", "--config", str(self.config_file)]
        log = self.directory / "serve.log"
        self._serving = Leashed.start("driftgate serve", command, log=log, environment=os.environ, grace=20)
        deadline = time.monotonic() + _READY_SECONDS
        while not self.is_ready():
            if self._serving.exit_code is not None or time.monotonic() > deadline:
                tail = self._serving.tail()
                self.halt()
                raise Unexpected(f"driftgate serve did not become ready:\n{tail}")
            time.sleep(0.1)

    def is_ready(self) -> bool:
        """Tell whether the webhook answers and is ready."""
        try:
            self._call("/readyz")
        except OSError:
            return False
        return True

    def ask(self, webhook: Webhook, review: bytes) -> bytes:
        """Send an AdmissionReview, as the API server does, and return the answer."""
        try:
            return self._call(f"/{webhook}", review)
        except OSError as error:
            raise Unexpected(f"driftgate did not answer: {error}") from None

    def halt(self) -> None:
        """End driftgate."""
        if self._serving is not None:
            self._serving.stop()
            self._serving = None

    def driftgate(self, *args: str, check: bool = True) -> str:
        """Run the command with this configuration and return what it prints."""
        environment = {**os.environ, "DRIFTGATE_CONFIG": str(self.config_file)}
        command = [sys.executable, "-m", "webhook", *args]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        if check and done.returncode != 0:
            raise Unexpected(f"driftgate {' '.join(args)} exited with {done.returncode}: {done.stderr}")
        return done.stdout

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"https://localhost:{self.port}"

    def _call(self, path: str, body: bytes | None = None) -> bytes:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, body, headers)  # noqa: S310 -- an https URL, as it stands
        with urllib.request.urlopen(request, context=context, timeout=10) as answer:  # noqa: S310 -- the same
            content: bytes = answer.read()
            return content


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
