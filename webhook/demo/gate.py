"""`driftgate serve` on loopback, with certificates, seal key and configuration of its own: the gate without a cluster.

The cluster is whatever a kubeconfig leads to. Who calls the webhook is not known here.
"""

import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import yaml

from webhook.admission import Webhook
from webhook.demo.leash import Leashed
from webhook.demo.terminal import Unexpected

_READY_SECONDS = 30.0


class Gate:
    """A running driftgate."""

    def __init__(self, directory: Path, *, repository: Path, progress: Callable[[str], object]) -> None:
        self.port = _free_port()
        self._directory = directory
        self._repository = repository
        self._progress = progress
        self._serving: Leashed | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"https://localhost:{self.port}"

    @property
    def ca_file(self) -> Path:
        """The certificate of the CA that signed its own."""
        return self._directory / "certificates" / "ca.crt"

    def prepare(self, kubeconfig: Path) -> None:
        """Make certificates and key, and write the configuration."""
        self._progress("making certificates")
        self._directory.mkdir(parents=True, exist_ok=True)
        certificates, key = self._directory / "certificates", self._directory / "seal.key"
        settings = {
            "cluster": "demo",
            "kubeconfig": str(kubeconfig),
            "state_directory": str(self._directory / "state"),
            "server": {"host": "127.0.0.1", "port": self.port, "certificates": str(certificates), "drain": "1s"},
            "break_glass": {"key_file": str(key)},
            "tracker": {"repository": str(self._repository)},
        }
        (self._directory / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        command = [sys.executable, "-m", "webhook", "certs", "--name", "localhost"]
        places = ["--directory", str(certificates), "--seal-key", str(key)]
        done = subprocess.run([*command, *places], capture_output=True, text=True, check=False, timeout=60)
        if done.returncode != 0:
            raise Unexpected(f"driftgate certs exited with {done.returncode}: {done.stderr}")

    def start(self) -> None:
        """Start `driftgate serve` and wait until it is ready."""
        self._progress("starting driftgate serve")
        command = [sys.executable, "-m", "webhook", "serve", "--config", str(self._directory / "config.yaml")]
        log = self._directory / "serve.log"
        self._serving = Leashed.start("driftgate serve", command, log=log, environment=os.environ, grace=20)
        deadline = time.monotonic() + _READY_SECONDS
        while not self._is_ready():
            if self._serving.exit_code is not None or time.monotonic() > deadline:
                raise Unexpected(f"driftgate serve did not become ready:\n{self._serving.tail()}")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
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

    def _call(self, path: str, body: bytes | None = None) -> bytes:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        request = urllib.request.Request(  # noqa: S310 -- an URL of our own
            self.url + path, body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, context=context, timeout=10) as answer:  # noqa: S310 -- the same
            content: bytes = answer.read()
            return content

    def stop(self) -> None:
        """End it."""
        if self._serving is not None:
            self._serving.stop()
            self._serving = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
