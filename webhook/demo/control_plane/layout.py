"""One control plane's files and ports, and the flags with which each program is told of them.

Everything listens on loopback. Ports are reserved before anything starts and stay reserved until the end, so that
several control planes, and whatever else runs on the machine, never take each other's.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LOOPBACK = "127.0.0.1"
SERVER_NAMES = ("localhost", LOOPBACK, "kubernetes", "kubernetes.default", "kubernetes.default.svc", "10.0.0.1")
NODE = "node-1"


def _reserve_port() -> socket.socket:
    """Return a socket bound to a free port on loopback, not listening.

    While it is open nobody is given the port by chance; a server that sets SO_REUSEPORT can still listen on it.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind((LOOPBACK, 0))
    return reserved


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The folder with all state, and two reserved ports."""

    directory: Path
    _etcd: socket.socket = field(default_factory=_reserve_port)
    _apiserver: socket.socket = field(default_factory=_reserve_port)

    @property
    def etcd_url(self) -> str:
        """Where the API server finds etcd."""
        return f"https://{LOOPBACK}:{self._etcd.getsockname()[1]}"

    @property
    def apiserver_port(self) -> int:
        """Where everybody finds the API server."""
        return int(self._apiserver.getsockname()[1])

    @property
    def home(self) -> Path:
        """The home directory of all processes, kubectl included."""
        return self.directory / "home"

    def pki(self, name: str) -> Path:
        """Return the file of a certificate or key."""
        return self.directory / "pki" / name

    def log(self, name: str) -> Path:
        """Return the file with the output of a process."""
        return self.directory / "logs" / f"{name}.log"

    def kubeconfig(self, name: str) -> Path:
        """Return the file of a kubeconfig."""
        return self.directory / "kubeconfigs" / name

    def make_folders(self) -> None:
        """Make the folders that these files are in."""
        for folder in (self.pki(""), self.log("").parent, self.kubeconfig(""), self.home):
            folder.mkdir(parents=True, exist_ok=True)

    def release(self) -> None:
        """Give the ports back."""
        self._etcd.close()
        self._apiserver.close()


def etcd_flags(layout: Layout) -> list[str]:
    """One member, which trusts nobody but the holders of the pair `etcd`."""
    authority, certificate, key = (layout.pki(name) for name in ("etcd-ca.crt", "etcd.crt", "etcd.key"))
    return [
        f"--data-dir={layout.directory / 'etcd'}",
        f"--listen-client-urls={layout.etcd_url}",
        f"--advertise-client-urls={layout.etcd_url}",
        f"--cert-file={certificate}",
        f"--key-file={key}",
        f"--trusted-ca-file={authority}",
        "--client-cert-auth=true",
        f"--listen-peer-urls=https://{LOOPBACK}:0",  # it has no peers
        f"--peer-cert-file={certificate}",
        f"--peer-key-file={key}",
        f"--peer-trusted-ca-file={authority}",
        "--peer-client-cert-auth=true",
        "--socket-reuse-port=true",  # the port is reserved
        "--unsafe-no-fsync=true",  # nothing here has to survive a power cut
        "--log-level=warn",
    ]


def apiserver_flags(layout: Layout, further: Sequence[str]) -> list[str]:
    """RBAC, client certificates and service account tokens, as on any cluster; `further` flags have the last word."""
    tokens = layout.pki("service-accounts.key")
    return [
        f"--bind-address={LOOPBACK}",
        f"--advertise-address={LOOPBACK}",
        "--endpoint-reconciler-type=none",  # loopback may not be the endpoint of a Service
        f"--secure-port={layout.apiserver_port}",
        "--permit-port-sharing=true",  # the port is reserved
        f"--tls-cert-file={layout.pki('server.crt')}",
        f"--tls-private-key-file={layout.pki('server.key')}",
        f"--client-ca-file={layout.pki('ca.crt')}",
        f"--etcd-servers={layout.etcd_url}",
        f"--etcd-cafile={layout.pki('etcd-ca.crt')}",
        f"--etcd-certfile={layout.pki('etcd.crt')}",
        f"--etcd-keyfile={layout.pki('etcd.key')}",
        "--authorization-mode=Node,RBAC",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={tokens}",
        f"--service-account-signing-key-file={tokens}",
        "--service-cluster-ip-range=10.0.0.0/16",
        "--allow-privileged=true",
        "--profiling=false",
        *further,
    ]


def controller_manager_flags(layout: Layout, kubeconfig: Path) -> list[str]:
    """Every controller writes under a service account of its own; autoscaling is looked at every two seconds."""
    return [
        f"--kubeconfig={kubeconfig}",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={layout.pki('service-accounts.key')}",
        f"--root-ca-file={layout.pki('ca.crt')}",
        "--leader-elect=false",
        "--secure-port=0",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
        "--horizontal-pod-autoscaler-sync-period=2s",
        "--node-monitor-grace-period=10m",  # a laptop that slept has no dead nodes
        "--profiling=false",
    ]


def scheduler_flags(kubeconfig: Path) -> list[str]:
    """It serves nothing and needs no lock."""
    return [f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--secure-port=0", "--profiling=false"]


def kwok_flags(kubeconfig: Path, stages: Path) -> list[str]:
    """It plays all nodes; pods get addresses that lead nowhere."""
    return [
        f"--kubeconfig={kubeconfig}",
        f"--config={stages}",
        "--manage-all-nodes=true",
        f"--node-ip={LOOPBACK}",
        "--cidr=10.244.0.0/16",
    ]


def node_objects() -> list[tuple[str, Mapping[str, object]]]:
    """Return what kwok needs to be there: the node, and the right to play it; each with the path to create it at.

    A kubelet has the Node authorizer; kwok looks at the pods of all nodes, so it gets a ClusterRole.
    """
    user, group = f"system:node:{NODE}", "rbac.authorization.k8s.io"
    rules = [
        {"apiGroups": [""], "resources": ["nodes", "pods"], "verbs": ["*"]},
        {"apiGroups": [""], "resources": ["nodes/status", "pods/status"], "verbs": ["update", "patch"]},
        {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["*"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["*"]},
    ]
    binding = {
        "metadata": {"name": "kwok"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "kwok"},
        "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
    }
    resources = {"cpu": "32", "memory": "256Gi", "pods": "110"}
    node = {
        "metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE, "kubernetes.io/os": "linux"}},
        "status": {"allocatable": resources, "capacity": resources},
    }
    return [
        (f"/apis/{group}/v1/clusterroles", {"metadata": {"name": "kwok"}, "rules": rules}),
        (f"/apis/{group}/v1/clusterrolebindings", binding),
        ("/api/v1/nodes", node),
    ]
