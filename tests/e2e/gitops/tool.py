"""What the GitOps tools have in common: programs on a leash, objects in the cluster, waiting with an end."""

import http.client
import json
import os
import shutil
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.control_plane import build
from webhook.demo.control_plane import ControlPlane
from webhook.demo.leash import Leashed

Object = dict[str, Any]

_POLL = 0.3  # seconds


class ToolError(AssertionError):
    """A tool did not do what was expected of it; the text says what was seen instead, and names the logs."""


def directory_of_tools() -> Path:
    """Return the folder in the user's cache where `make gitops-tools` puts exactly these versions."""
    return build.cache_directory(build.GITOPS_TOOLS)


def why_unavailable() -> str | None:
    """Return why the GitOps tools can't be started on this machine; None if they can."""
    if missing := build.missing(directory_of_tools(), build.GITOPS_TOOLS):
        return f"{', '.join(missing)} is not built: run `make gitops-tools`"
    if absent := [name for name in ("git", "redis-server") if shutil.which(name) is None]:
        return f"Argo CD needs {' and '.join(absent)} on PATH (Debian's packages are called so too)"
    return None


class Tool(ABC):
    """A GitOps tool, started and stopped by `with` (or `start` and `stop`, once each).

    `directory` keeps its logs and temporary files.
    """

    namespace: str

    def __init__(self, control_plane: ControlPlane, directory: Path) -> None:
        self.control_plane = control_plane
        self.directory = directory.absolute()
        self.tools = directory_of_tools()
        self.temporary = self.directory / "tmp"
        self.home = self.directory / "home"
        self._running: list[Leashed] = []  # in the order in which they were started

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Start everything and wait until it works. If that fails nothing is left running."""
        for folder in (self.temporary, self.home):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    @abstractmethod
    def _start(self) -> None:
        """Put into the cluster what the tool needs, and run its programs."""

    def stop(self) -> None:
        """End its programs, the last one first. What it put into the cluster stays there."""
        for process in reversed(self._running):
            process.stop()
        self._running.clear()

    # Programs

    def run(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str]) -> None:
        """Start a program with this environment, and a home and temporary folder of its own."""
        path = os.pathsep.join([*(str(Path(found).parent) for name in ("git",) if (found := shutil.which(name)))])
        own = {"PATH": f"{path}{os.pathsep}{os.defpath}", "HOME": str(self.home), "TMPDIR": str(self.temporary)}
        log = self.directory / f"{name}.log"
        self._running.append(Leashed.start(name, command, log=log, environment=own | dict(environment), grace=10))

    def wait(
        self, what: str, look: Callable[[], Any], *, seconds: float, seen: Callable[[], object] = lambda: "nothing"
    ) -> Any:
        """Return what `look` finds as soon as it finds something; `seen` says what there is when it never does."""
        deadline = time.monotonic() + seconds
        while not (found := look()):
            for process in self._running:
                if process.exit_code is not None:
                    message = f"{process.name} exited with code {process.exit_code}:\n{process.tail()}\n{process.log}"
                    raise ToolError(message)
            if time.monotonic() > deadline:
                logs = "\n".join(str(process.log) for process in self._running)
                message = f"{what}: not within {seconds:.0f} s. There is: {seen()}\nLogs:\n{logs}"
                raise ToolError(message)
            time.sleep(_POLL)
        return found

    # Objects

    def reconciler(self, name: str, namespace: str = "") -> Path:
        """Return a kubeconfig with a token of a service account that may do everything."""
        namespace = namespace or self.namespace
        path = self.control_plane.service_account(namespace, name)
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"{namespace}-{name}"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": name}],
        }
        self.apply(binding)
        return path

    def apply(self, *manifests: Object, namespace: str = "") -> None:
        """Apply manifests as the cluster's administrator."""
        documents = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        self._apply("-", namespace, documents)

    def apply_built(self, file: str, namespace: str = "") -> None:
        """Apply a file that was built with the tools."""
        self._apply(str(self.tools / file), namespace)

    def _apply(self, file: str, namespace: str, documents: str = "") -> None:
        where = ["-n", namespace] if namespace else []
        how = ["--server-side", "--force-conflicts", "--field-manager=platform"]
        self.control_plane.kubectl("apply", *how, *where, "-f", file, input=documents, check=True)

    def apply_definitions(self, *files: str) -> None:
        """Apply CustomResourceDefinitions that were built with the tools, and wait until they are in force."""
        for file in files:
            self.apply_built(file)
            self.wait(f"{file} is in force", partial(self._established, file), seconds=60)

    def _established(self, file: str) -> bool:
        """Tell whether definitions are in force; kubectl gives up at once on one that has no conditions yet."""
        asked = ["wait", "--for=condition=Established", "--timeout=5s", "-f", str(self.tools / file)]
        return self.control_plane.kubectl(*asked).returncode == 0

    def get(self, resource: str, name: str, namespace: str = "") -> Object | None:
        """Return an object, decoded; None if it is not there."""
        where = ["-n", namespace or self.namespace]
        done = self.control_plane.kubectl(
            "get", resource, name, *where, "-o", "json", "--ignore-not-found", "--show-managed-fields", check=True
        )
        found: Object | None = json.loads(done.stdout) if done.stdout.strip() else None
        return found

    def annotate(self, resource: str, name: str, *annotations: str, namespace: str = "") -> None:
        """Set annotations as the cluster's administrator."""
        where = ["-n", namespace or self.namespace]
        self.control_plane.kubectl("annotate", resource, name, *where, "--overwrite", *annotations, check=True)

    def delete(self, resource: str, name: str, *, namespace: str = "", seconds: float = 60) -> None:
        """Delete an object as the cluster's administrator, and wait until its finalizers have done their work."""
        where = ["-n", namespace or self.namespace]
        patience = f"--timeout={seconds:.0f}s"
        command = ["delete", resource, name, *where, patience]
        self.control_plane.kubectl(*command, timeout=seconds + 10, check=True)


def free_port() -> int:
    """Return a port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Tell whether somebody listens on a port of loopback."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def is_healthy(port: int) -> bool:
    """Tell whether a program says on this port of loopback that it works."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()
