"""driftgate in front of a control plane on loopback, as a platform team would install it: for demo and tests.

Certificates and seal key by `driftgate certs`, the processes by `driftgate serve`, the registration exactly as
`driftgate manifests` prints it. The API server reaches the webhook through a Service, as in a cluster.
"""

import json
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from webhook.demo.control_plane import ControlPlane, ControlPlaneError
from webhook.demo.leash import Leashed
from webhook.demo.sample import PUSH, Applied, Manifest, marked

NAMESPACE = "driftgate"
CONTROLLER = "driftgate-controller"
_READY_SECONDS = 30.0

_RULES: list[Manifest] = [
    {"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list", "watch", "patch"]},
    {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
]


class Stage:
    """A running driftgate. `settings` go on top of the stage's own configuration."""

    def __init__(
        self,
        cluster: ControlPlane,
        directory: Path,
        *,
        settings: dict[str, Any] | None = None,
        progress: Callable[[str], object] | None = None,
    ) -> None:
        self.cluster = cluster
        self.directory = directory
        self.port = _free_port()
        self.config_file = directory / "config.yaml"
        self.registration_file = directory / "registration.yaml"
        self.repository = directory / "deploy.git"
        self._settings = settings or {}
        self._progress: Callable[[str], object] = progress or (lambda _: None)
        self._serving: Leashed | None = None

    def __enter__(self) -> Self:
        self.prepare()
        self.start()
        self.register()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def prepare(self) -> None:
        """Make certificates and key, give driftgate its account and its Service, write its configuration."""
        self._progress("making certificates")
        self.directory.mkdir(parents=True, exist_ok=True)
        account = self.cluster.service_account(NAMESPACE, CONTROLLER)
        for manifest in _objects(self.port):
            self.apply(manifest)
        self._write_config(account)
        names = ["--name", f"{NAMESPACE}.{NAMESPACE}.svc", "--name", "localhost"]
        certificates = [
            "--directory",
            str(self.directory / "certificates"),
            "--seal-key",
            str(self.directory / "seal.key"),
        ]
        self.driftgate("certs", *names, *certificates)

    def _write_config(self, account: Path) -> None:
        settings: dict[str, Any] = {
            "cluster": "demo",
            "kubeconfig": str(account),
            "state_directory": str(self.directory / "state"),
            "server": {
                "host": "127.0.0.1",
                "port": self.port,
                "certificates": str(self.directory / "certificates"),
                "drain": "1s",
            },
            "break_glass": {"key_file": str(self.directory / "seal.key")},
            "tracker": {"repository": str(self.repository)},
            "tools": {"push": {"reconcilers": ["system:serviceaccount:" + ":".join(PUSH.account)]}},
        }
        for key, value in self._settings.items():
            settings[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
        self.config_file.write_text(yaml.safe_dump(settings), encoding="utf-8")

    def start(self) -> None:
        """Start `driftgate serve` and wait until it is ready."""
        self._progress("starting driftgate serve")
        command: list[str | Path] = [sys.executable, "-m", "webhook", "serve", "--config", self.config_file]
        log = self.directory / "serve.log"
        self._serving = Leashed.start("driftgate serve", command, log=log, environment=os.environ, grace=20)
        deadline = time.monotonic() + _READY_SECONDS
        while not self.is_ready():
            if self._serving.exit_code is not None or time.monotonic() > deadline:
                tail = self._serving.tail()
                self.stop()
                raise ControlPlaneError(f"driftgate serve did not become ready:\n{tail}")
            time.sleep(0.1)

    def is_ready(self) -> bool:
        """Tell whether the webhook answers and is ready."""
        context = ssl.create_default_context(cafile=str(self.directory / "certificates" / "ca.crt"))
        try:
            with urllib.request.urlopen(f"https://localhost:{self.port}/readyz", context=context, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def register(self) -> None:
        """Apply what `driftgate manifests` prints, and wait until the API server goes by it."""
        self._progress("registering the webhooks")
        self.registration_file.write_text(
            self.driftgate("manifests", "--service", f"{NAMESPACE}/{NAMESPACE}:{self.port}"), encoding="utf-8"
        )
        self.cluster.kubectl("apply", "-f", str(self.registration_file), check=True)
        self._wait_until_in_force()

    def _wait_until_in_force(self) -> None:
        """Wait until a forged stamp is refused: the API server takes a moment to notice a new registration."""
        probe = marked({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "probe"}}, PUSH)
        probe["metadata"]["namespace"] = "default"
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            tried = self.cluster.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(probe))
            if tried.returncode != 0 and "driftgate.dev" in tried.stderr:
                return
            time.sleep(0.2)
        raise ControlPlaneError(f"the API server does not go by the registration: {tried.stderr}{tried.stdout}")

    def stop(self) -> None:
        """Take the registration away and end driftgate."""
        self.switch_off()
        self.halt()

    def halt(self) -> None:
        """End driftgate and leave the registration: the API server goes on asking nobody."""
        if self._serving is not None:
            self._serving.stop()
            self._serving = None

    def switch_off(self) -> None:
        """Do what the README says to switch driftgate off."""
        kinds = "validatingwebhookconfiguration,mutatingwebhookconfiguration"
        self.cluster.kubectl("delete", kinds, "driftgate", "--ignore-not-found")

    def driftgate(self, *args: str, check: bool = True) -> str:
        """Run the command with the stage's configuration and return what it prints."""
        named = [] if args[0] in {"certs", "--help"} else ["--config", str(self.config_file)]
        subcommand = 2 if args[0] == "audit" else 1
        command = [sys.executable, "-m", "webhook", *args[:subcommand], *named, *args[subcommand:]]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if check and done.returncode != 0:
            raise ControlPlaneError(f"driftgate {' '.join(args)} exited with {done.returncode}: {done.stderr}")
        return done.stdout

    def apply(self, manifest: Manifest, *flags: str, config: Path | None = None) -> None:
        """Apply a manifest, as the administrator or as whose kubeconfig is given."""
        self.cluster.kubectl("apply", *flags, "-f", "-", input=json.dumps(manifest), config=config, check=True)

    def reconciler(self, applied: Applied) -> Path:
        """Return the kubeconfig of a tool's account, which may do everything."""
        namespace, name = applied.account
        path = self.cluster.service_account(namespace, name)
        self.apply(_binding(f"reconciler-{name}", "cluster-admin", _account(namespace, name)))
        return path

    def deploy(self, applied: Applied, *manifests: Manifest, application: str = "checkout") -> Path:
        """Apply manifests as a tool does; return the kubeconfig with which it did."""
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": applied.namespace}})
        config = self.reconciler(applied)
        for manifest in manifests:
            self.apply(marked(manifest, applied, application), *applied.flags, config=config)
        return config

    def person(self, name: str, group: str, *, namespace: str = "", may_break_glass: bool = False) -> Path:
        """Return the kubeconfig of an ordinary user: ClusterRole `admin`; with or without the right to break glass.

        Bound in `namespace`, or without one in all of them.
        """
        subject = {"kind": "Group", "name": group, "apiGroup": "rbac.authorization.k8s.io"}
        self.apply(_binding(f"{group}-admin", "admin", subject, namespace))
        if may_break_glass:
            rules = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["break-glass"]}]
            self.apply(_role("break-glass", rules))
            self.apply(_binding(f"{group}-break-glass", "break-glass", subject, namespace))
        return self.cluster.kubeconfig(name, [group])


def _objects(port: int) -> list[Manifest]:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAMESPACE, "namespace": NAMESPACE},
        "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]},
    }
    return [service, _role("driftgate", _RULES), _binding("driftgate", "driftgate", _account(NAMESPACE, CONTROLLER))]


def _role(name: str, rules: list[Manifest]) -> Manifest:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": rules,
    }


def _binding(name: str, role: str, subject: Manifest, namespace: str = "") -> Manifest:
    """Bind a ClusterRole, in one namespace or in all."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding" if namespace else "ClusterRoleBinding",
        "metadata": {"name": name, **({"namespace": namespace} if namespace else {})},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [subject],
    }


def _account(namespace: str, name: str) -> Manifest:
    return {"kind": "ServiceAccount", "namespace": namespace, "name": name}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
