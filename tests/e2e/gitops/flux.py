"""The real Flux: its kustomize-controller, fed with commits of a repository as its source-controller would.

There is no source-controller: `publish` writes what it would write, the artifact of a GitRepository's status.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.e2e.gitops.repository import BRANCH, FileServer, Repository
from tests.e2e.gitops.tool import Object, Tool, ToolError
from webhook.demo.control_plane import ControlPlane

KUSTOMIZATIONS = "kustomizations.kustomize.toolkit.fluxcd.io"
SOURCES = "gitrepositories.source.toolkit.fluxcd.io"
SOURCE = "deploy"
ACCOUNT = "kustomize-controller"
_WAIT = 60.0  # seconds


class Flux(Tool):
    """A running Flux with one source, `deploy`. Its objects are in namespace `flux-system`."""

    namespace = "flux-system"
    identity = f"system:serviceaccount:{namespace}:{ACCOUNT}"

    def __init__(self, control_plane: ControlPlane, directory: Path, repository: Repository) -> None:
        super().__init__(control_plane, directory)
        self.repository = repository
        self.published: str | None = None
        self._artifacts = self.directory / "artifacts"
        self._artifacts.mkdir(parents=True)
        self._server = FileServer(self._artifacts)

    def _start(self) -> None:
        self.apply_definitions("flux-crds.yaml", "flux-source-crds.yaml")
        kubeconfig = self.reconciler(ACCOUNT)
        spec = {"url": "https://git.example.org/shop/deploy", "interval": "1h", "ref": {"branch": BRANCH}}
        self.apply(_object("source.toolkit.fluxcd.io/v1", "GitRepository", SOURCE, self.namespace, spec))
        flags = ["--metrics-addr=0", "--health-addr=127.0.0.1:0", "--interval-jitter-percentage=0"]
        environment = {"KUBECONFIG": str(kubeconfig), "RUNTIME_NAMESPACE": self.namespace}
        self.run("kustomize-controller", [self.tools / "kustomize-controller", *flags], environment)
        self.publish()
        log = self._running[-1].log
        self.wait("Flux works", lambda: "Starting workers" in log.read_text(), seconds=_WAIT)

    def stop(self) -> None:
        """End it."""
        super().stop()
        self._server.stop()

    def publish(self) -> str:
        """Make the newest commit what Flux deploys; return its revision, such as `main@sha1:...`."""
        commit = self.repository.head
        name = f"{commit}.tar.gz"
        revision = f"{BRANCH}@sha1:{commit}"
        artifact = {
            "digest": self.repository.archive(commit, self._artifacts / name),
            "lastUpdateTime": datetime.now(UTC).isoformat(timespec="seconds"),
            "path": f"gitrepository/{self.namespace}/{SOURCE}/{name}",
            "revision": revision,
            "url": self._server.url(name),
        }
        patch = json.dumps({"status": {"artifact": artifact}})
        command = ["patch", SOURCES, SOURCE, "-n", self.namespace, "--subresource=status", "--type=merge", "-p", patch]
        self.control_plane.kubectl(*command, check=True)
        self.published = revision
        return revision

    def kustomization(
        self,
        name: str,
        path: str,
        target_namespace: str = "",
        *,
        namespace: str = "",
        interval: str = "1h",
        prune: bool = True,
        service_account: str | None = None,
        force: bool = False,
        spec: Mapping[str, Any] | None = None,
    ) -> None:
        """Create or change a Kustomization that deploys a folder of the repository; `spec` has the last word.

        The target's namespace has to be there, or to be in the folder.
        """
        whole = {
            "sourceRef": {"kind": "GitRepository", "name": SOURCE, "namespace": self.namespace},
            "path": f"./{path}",
            "interval": interval,
            "prune": prune,
            "force": force,
            "timeout": "30s",
            **({"targetNamespace": target_namespace} if target_namespace else {}),
            **({"serviceAccountName": service_account} if service_account else {}),
            **(spec or {}),
        }
        self.apply(_object("kustomize.toolkit.fluxcd.io/v1", "Kustomization", name, namespace or self.namespace, whole))

    def request(self, name: str, namespace: str = "") -> str:
        """Ask for a reconciliation, as `flux reconcile` does and as the administrator; return the token."""
        token = datetime.now(UTC).isoformat()
        self.annotate(KUSTOMIZATIONS, name, f"reconcile.fluxcd.io/requestedAt={token}", namespace=namespace)
        return token

    def reconcile(self, name: str, namespace: str = "", *, fails: bool = False, seconds: float = _WAIT) -> Object:
        """Have the published revision reconciled; return the condition `Ready`.

        Raises ToolError if that did not succeed, or, with `fails`, if it did.
        """
        for _ in range(3):  # it may have looked at the source just before that was published
            token = self.request(name, namespace)

            def handled(token: str = token) -> Object | None:
                status = self.status(name, namespace)
                return status if status.get("lastHandledReconcileAt") == token else None

            status = self.wait(
                f"Flux has reconciled {name}", handled, seconds=seconds, seen=lambda: self.status(name, namespace)
            )
            if status.get("lastAttemptedRevision") == self.published:
                break
        ready = _condition(status, "Ready")
        if (ready.get("status") == "True") == fails:
            message = f"Flux reconciled {name}, and it is Ready={ready.get('status')}: {ready.get('message')}"
            raise ToolError(f"{message}\n{self._running[-1].log}")
        return ready

    def status(self, name: str, namespace: str = "") -> Object:
        """Return a Kustomization's status; empty if it has none."""
        found = self.get(KUSTOMIZATIONS, name, namespace)
        status: Object = (found or {}).get("status", {})
        return status

    def remove(self, name: str, namespace: str = "", *, seconds: float = _WAIT) -> None:
        """Delete a Kustomization, and with `prune` what it deployed."""
        self.delete(KUSTOMIZATIONS, name, namespace=namespace, seconds=seconds)


def _object(api_version: str, kind: str, name: str, namespace: str, spec: Object) -> Object:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def _condition(status: Object, kind: str) -> Object:
    return next((found for found in status.get("conditions", ()) if found["type"] == kind), {})
