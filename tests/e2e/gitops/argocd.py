"""The real Argo CD: its application-controller and repo-server, with a Redis; without its web server.

It looks at an application every twenty seconds, at once when asked to (`refresh`), and heals drift after one second.
The application-controller's metrics are the one thing that does not listen on loopback only: it has no setting for it.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from tests.e2e.gitops.repository import BRANCH, Repository
from tests.e2e.gitops.tool import Object, Tool, ToolError, answers, free_port, is_healthy

APPLICATIONS = "applications.argoproj.io"
FINALIZER = "resources-finalizer.argocd.argoproj.io"
ACCOUNT = "argocd-application-controller"
IN_CLUSTER = "https://kubernetes.default.svc"
_REFRESH = "argocd.argoproj.io/refresh"
_WAIT = 60.0  # seconds


class ArgoCD(Tool):
    """A running Argo CD. Its applications are in namespace `argocd`, in project `default`."""

    namespace = "argocd"
    identity = f"system:serviceaccount:{namespace}:{ACCOUNT}"

    def _start(self) -> None:
        self.apply_definitions("argocd-crds.yaml")
        self._kubeconfig = self.reconciler(ACCOUNT)
        self.apply_built("argocd-config.yaml", namespace=self.namespace)
        self.apply(_everything_is_allowed(self.namespace))
        redis = self._start_redis()
        repo_server = self._start_repo_server(redis)
        self._start_controller(redis, repo_server)

    def _start_redis(self) -> int:
        binary, port = shutil.which("redis-server"), free_port()
        if binary is None:
            raise ToolError("Argo CD needs a redis-server on PATH: apt-get install redis-server")
        keeping = ["--save", "", "--appendonly", "no", "--dir", str(self.temporary)]
        self.run("redis-server", [binary, "--bind", "127.0.0.1", "--port", str(port), *keeping], {})
        self.wait("Redis listens", lambda: answers(port), seconds=_WAIT)
        return port

    def _start_repo_server(self, redis: int) -> int:
        port = free_port()
        addresses = ["--address=127.0.0.1", f"--port={port}"]
        metrics = ["--metrics-address=127.0.0.1", f"--metrics-port={free_port()}"]
        self._run("argocd-repo-server", [*addresses, *metrics, f"--redis=127.0.0.1:{redis}"])
        self.wait("Argo CD's repo-server listens", lambda: answers(port), seconds=_WAIT)
        return port

    def _start_controller(self, redis: int, repo_server: int) -> None:
        metrics = free_port()
        servers = [f"--redis=127.0.0.1:{redis}", f"--repo-server=127.0.0.1:{repo_server}"]
        haste = ["--app-resync=20", "--app-resync-jitter=0", "--self-heal-timeout-seconds=1"]
        where = [f"--namespace={self.namespace}", f"--metrics-port={metrics}"]
        self._run("argocd-application-controller", [*where, *servers, *haste])
        self.wait("Argo CD's application-controller works", lambda: is_healthy(metrics), seconds=_WAIT)

    def _run(self, name: str, flags: Sequence[str]) -> None:
        certificates = self.directory / "certificates"
        certificates.mkdir(exist_ok=True)
        environment = {
            "KUBECONFIG": str(self._kubeconfig),
            "ARGOCD_BINARY_NAME": name,
            "ARGOCD_FAKE_IN_CLUSTER": "true",
            "ARGOCD_GPG_ENABLED": "false",
            "ARGOCD_TLS_DATA_PATH": str(certificates),
            "ARGOCD_SSH_DATA_PATH": str(certificates),
            "ARGOCD_ASK_PASS_SOCK": str(self.temporary / "ask-pass.sock"),
            "ARGOCD_PLUGINSOCKFILEPATH": str(self.temporary),
            "GIT_CONFIG_NOSYSTEM": "1",
        }
        self.run(name, [self.tools / "argocd", *flags], environment)

    # Applications

    def application(self, name: str, repository: Repository, path: str, namespace: str, **how: Any) -> None:
        """Create or change the application of `manifest`."""
        self.apply(self.manifest(name, repository, path, namespace, **how))

    def manifest(
        self,
        name: str,
        repository: Repository,
        path: str,
        namespace: str,
        *,
        automated: bool = True,
        self_heal: bool = True,
        prune: bool = True,
        server_side: bool = False,
        replace: bool = False,
        cascade: bool = True,
        options: Sequence[str] = (),
        spec: Mapping[str, Any] | None = None,
    ) -> Object:
        """Return the Application that deploys a folder of the repository; `spec` has the last word.

        With `cascade` its deletion deletes what it deployed. `options` are syncOptions besides those with a name here.
        """
        named = {"ServerSideApply=true": server_side, "Replace=true": replace}
        policy: Object = {"syncOptions": [*(option for option, on in named.items() if on), *options]}
        if automated:
            policy["automated"] = {"selfHeal": self_heal, "prune": prune}
        return {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Application",
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                **({"finalizers": [FINALIZER]} if cascade else {}),
            },
            "spec": {
                "project": "default",
                "source": {"repoURL": repository.url, "path": path, "targetRevision": BRANCH},
                "destination": {"server": IN_CLUSTER, "namespace": namespace},
                "syncPolicy": policy,
                **(spec or {}),
            },
        }

    def refresh(self, name: str, *, seconds: float = _WAIT) -> None:
        """Have it look at Git and cluster now, as `argocd app get --refresh` does; wait until it has."""
        self.annotate(APPLICATIONS, name, f"{_REFRESH}=normal")
        self.wait(
            f"Argo CD has refreshed {name}",
            lambda: _REFRESH not in (self._application(name)["metadata"].get("annotations") or {}),
            seconds=seconds,
            seen=lambda: self.status(name),
        )

    def sync(self, name: str) -> None:
        """Start a sync by hand, as `argocd app sync` does."""
        operation = {"operation": {"initiatedBy": {"username": "admin"}, "sync": {"revision": BRANCH}}}
        command = ["patch", APPLICATIONS, name, "-n", self.namespace, "--type=merge", "-p", json.dumps(operation)]
        self.control_plane.kubectl(*command, check=True)

    def synced(self, name: str, commit: str, *, seconds: float = _WAIT) -> Object:
        """Wait until cluster and Git agree at this commit and the last sync succeeded; return the status."""

        def agrees() -> Object | None:
            status = self.status(name)
            sync, operation = status.get("sync", {}), status.get("operationState", {})
            good = sync.get("status") == "Synced" and sync.get("revision") == commit
            return status if good and operation.get("phase") == "Succeeded" else None

        found: Object = self.wait(f"{name} is synced", agrees, seconds=seconds, seen=lambda: self.brief(name))
        return found

    def brief(self, name: str) -> Object:
        """Return what the status says about sync, health and the last operation."""
        status = self.status(name)
        operation = status.get("operationState", {})
        return {
            "sync": {key: status.get("sync", {}).get(key) for key in ("status", "revision")},
            "health": status.get("health", {}).get("status"),
            "operation": {key: operation.get(key) for key in ("phase", "message", "retryCount")},
            "resources": status.get("resources", []),
            "conditions": status.get("conditions", []),
        }

    def status(self, name: str) -> Object:
        """Return an application's status; empty if it has none."""
        found = self.get(APPLICATIONS, name)
        status: Object = (found or {}).get("status", {})
        return status

    def remove(self, name: str, *, seconds: float = _WAIT) -> None:
        """Delete an application, and with `cascade` what it deployed."""
        self.delete(APPLICATIONS, name, seconds=seconds)

    def _application(self, name: str) -> Object:
        found = self.get(APPLICATIONS, name)
        if found is None:
            raise ToolError(f"there is no application {name}")
        return found


def _everything_is_allowed(namespace: str) -> Object:
    anything = [{"group": "*", "kind": "*"}]
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "AppProject",
        "metadata": {"name": "default", "namespace": namespace},
        "spec": {
            "sourceRepos": ["*"],
            "destinations": [{"server": "*", "namespace": "*"}],
            "clusterResourceWhitelist": anything,
        },
    }
