"""A real Kubernetes control plane on loopback: found, started, used by several identities, and stopped.

etcd, kube-apiserver and kubectl are enough for admission. With kube-controller-manager, kube-scheduler and kwok beside
them, built-in controllers write under their own service accounts, and pods are scheduled and become Running on a node
that kwok plays; its writes come from `system:node:node-1`, as a kubelet's do.

    with ControlPlane(binaries) as cluster:
        cluster.kubectl("get", "pods", config=cluster.kubeconfig("alice", ["developers"]))

TLS, client certificates, service account tokens and RBAC are on. There is no cluster network: the API server reaches a
webhook by a Service of type ExternalName `localhost`, or by a URL. State lives in one folder, a temporary one unless
the caller names one. No process outlives this one, however it ends (`webhook.demo.leash`).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from webhook.demo.control_plane import layout
from webhook.demo.control_plane.api import Api
from webhook.demo.control_plane.authority import Authority, Pair, encoded, kubeconfig, new_signing_key
from webhook.demo.control_plane.binaries import Binaries, ControlPlaneError, find_binaries
from webhook.demo.leash import Leashed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

__all__ = ["Binaries", "ControlPlane", "ControlPlaneError", "find_binaries"]

START_SECONDS = 120.0
POLL_SECONDS = 0.1
TOKEN_SECONDS = 24 * 3600


class ControlPlane:
    """One control plane, started and stopped by `with` (or `start` and `stop`, once each).

    `directory` keeps its state and logs. Without one they are in a temporary folder, which goes when the control plane
    stops, and stays when it fails to start. `progress` is told in short lines what is going on.
    `admission_config` is the API server's `--admission-control-config-file`; `apiserver_flags` come after all others.
    """

    def __init__(
        self,
        binaries: Binaries,
        *,
        directory: Path | None = None,
        progress: Callable[[str], object] | None = None,
        admission_config: Path | None = None,
        apiserver_flags: Sequence[str] = (),
    ) -> None:
        self.binaries = binaries
        self.directory = Path(directory or tempfile.mkdtemp(prefix="driftgate-")).absolute()
        self._temporary = directory is None
        self._progress: Callable[[str], object] = progress or (lambda _: None)
        admission = (
            [] if admission_config is None else [f"--admission-control-config-file={admission_config.absolute()}"]
        )
        self._apiserver_flags = [*admission, *apiserver_flags]
        self._layout = layout.Layout(directory=self.directory)
        self._layout.make_folders()
        self._authority = Authority.create(now=datetime.now(UTC))
        self._kubeconfigs: dict[tuple[str, tuple[str, ...]], Path] = {}
        self._running: list[Leashed] = []  # in the order in which they were started

    # Where it is

    @property
    def server(self) -> str:
        """The API server's URL."""
        return f"https://{layout.LOOPBACK}:{self._layout.apiserver_port}"

    @property
    def ca_file(self) -> Path:
        """The certificate of the CA that signed the API server's, PEM."""
        return self._layout.pki("ca.crt")

    @property
    def ca_data(self) -> str:
        """The same as a kubeconfig's `certificate-authority-data`."""
        return encoded(self._authority.certificate)

    def log(self, name: str) -> Path:
        """Return the log of a process, such as `kube-apiserver`."""
        return self._layout.log(name)

    # Who uses it

    @property
    def admin(self) -> Path:
        """The kubeconfig of a user who may do everything (group system:masters)."""
        return self.kubeconfig("admin", ["system:masters"])

    def kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        """Return a kubeconfig for a user with a client certificate; the same one for the same user and groups.

        The user may do nothing until RBAC says otherwise. `user` has at most 64 characters.
        """
        identity = (user, tuple(groups))
        if identity not in self._kubeconfigs:
            pair = self._authority.for_user(*identity)
            credentials = {"client-certificate-data": encoded(pair.certificate), "client-key-data": encoded(pair.key)}
            self._kubeconfigs[identity] = self._write_kubeconfig(" ".join([user, *groups]), credentials)
        return self._kubeconfigs[identity]

    def service_account(self, namespace: str, name: str) -> Path:
        """Return a kubeconfig with a new token (24 hours) of a service account.

        The account and its namespace are created if they are not there.
        """
        api, accounts = Api(self._layout), f"/api/v1/namespaces/{namespace}/serviceaccounts"
        api.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
        api.create(accounts, {"metadata": {"name": name}})
        answer = api.create(f"{accounts}/{name}/token", {"spec": {"expirationSeconds": TOKEN_SECONDS}})
        return self._write_kubeconfig(f"{namespace} {name}", {"token": answer["status"]["token"]}, namespace=namespace)

    def kubectl(
        self,
        *args: str,
        config: Path | None = None,
        input: str | None = None,  # noqa: A002 -- named as in subprocess.run
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the user of `config` (else as admin) and return what it printed and its exit code.

        It reads and caches nothing in the user's own home; `env` is added to this process's environment.

        Raises ControlPlaneError for an exit code other than 0 if `check`, and subprocess.TimeoutExpired.
        """
        done = subprocess.run(
            [self.binaries.kubectl, *args],
            input=input or "",
            env={**os.environ, **self._home(), "KUBECONFIG": str(config or self.admin), **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            message = f"kubectl {' '.join(args)} exited with code {done.returncode}: {done.stderr.strip()}"
            raise ControlPlaneError(message)
        return done

    # Starting and stopping

    def start(self) -> Self:
        """Start everything and wait until it can be used.

        Raises ControlPlaneError, with the end of a log, if a process exits or does not answer for two minutes. Nothing
        is left running then.
        """
        started = time.monotonic()
        try:
            self._write_files()
            self._start_server()
            self._start_controllers()
        except ControlPlaneError:
            self._end_processes()  # its logs stay
            raise
        except BaseException:
            self.stop()
            raise
        self._progress(f"ready in {time.monotonic() - started:.1f} s")
        return self

    def stop(self) -> None:
        """End everything and remove the folder if it is a temporary one."""
        self._progress("stopping the control plane")
        self._end_processes()
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _write_files(self) -> None:
        of_etcd = Authority.create(now=datetime.now(UTC))  # no user of the API server gets into etcd
        _write_secret(self._layout.pki("etcd-ca.crt"), of_etcd.certificate)
        self._write_pair("etcd", of_etcd.for_server([layout.LOOPBACK]))
        _write_secret(self.ca_file, self._authority.certificate)
        self._write_pair("server", self._authority.for_server(layout.SERVER_NAMES))
        self._write_pair("admin", self._authority.for_user("admin", ["system:masters"]))
        _write_secret(self._layout.pki("service-accounts.key"), new_signing_key())

    def _start_server(self) -> None:
        self._progress("starting etcd and kube-apiserver")
        self._run("etcd", self.binaries.etcd, layout.etcd_flags(self._layout))
        flags = layout.apiserver_flags(self._layout, self._apiserver_flags)
        self._run("kube-apiserver", self.binaries.kube_apiserver, flags)
        self._wait_for("/readyz")
        self._wait_for("/api/v1/namespaces/default")

    def _start_controllers(self) -> None:
        binaries = self.binaries
        if binaries.missing:
            self._progress(f"doing without {', '.join(binaries.missing)}")
        if binaries.kube_scheduler:
            self._progress("starting kube-scheduler")
            flags = layout.scheduler_flags(self.kubeconfig("system:kube-scheduler"))
            self._run("kube-scheduler", binaries.kube_scheduler, flags)
        if binaries.kwok and binaries.kwok_stages:
            self._progress("starting kwok")
            for path, content in layout.node_objects():
                Api(self._layout).create(path, content)
            kubelet = self.kubeconfig(f"system:node:{layout.NODE}", ["system:nodes"])
            self._run("kwok", binaries.kwok, layout.kwok_flags(kubelet, binaries.kwok_stages))
        if binaries.kube_controller_manager:
            self._progress("starting kube-controller-manager")
            manager = self.kubeconfig("system:kube-controller-manager")
            flags = layout.controller_manager_flags(self._layout, manager)
            self._run("kube-controller-manager", binaries.kube_controller_manager, flags)
            self._wait_for("/api/v1/namespaces/default/serviceaccounts/default")

    def _run(self, name: str, binary: Path, flags: Sequence[str]) -> None:
        environment = {"PATH": os.defpath, **self._home()}  # not the caller's: no proxies, no in-cluster settings
        process = Leashed.start(name, [binary, *flags], log=self.log(name), environment=environment)
        self._running.append(process)

    def _wait_for(self, path: str) -> None:
        """Wait until a GET answers 200."""
        api, deadline = Api(self._layout), time.monotonic() + START_SECONDS
        while (reason := api.why_not(path)) is not None:
            for process in self._running:
                if process.exit_code is not None:
                    message = f"{process.name} exited with code {process.exit_code}:\n{process.tail()}\n{process.log}"
                    raise ControlPlaneError(message)
            if time.monotonic() > deadline:
                message = f"{path} was not there after {START_SECONDS:.0f} s: {reason}\nLogs: {self.log('').parent}"
                raise ControlPlaneError(message)
            time.sleep(POLL_SECONDS)

    def _end_processes(self) -> None:
        """End first the API server's clients, together; then the API server; then etcd."""
        servers, clients = self._running[:2], self._running[2:]
        for process in clients:
            process.let_go()
        for process in [*clients, *reversed(servers)]:
            process.stop()
        self._running.clear()
        self._layout.release()

    # Files

    def _home(self) -> dict[str, str]:
        return {"HOME": str(self._layout.home), "KUBECACHEDIR": str(self._layout.home / "cache")}

    def _write_pair(self, name: str, pair: Pair) -> None:
        _write_secret(self._layout.pki(f"{name}.crt"), pair.certificate)
        _write_secret(self._layout.pki(f"{name}.key"), pair.key)

    def _write_kubeconfig(self, identity: str, user: Mapping[str, str], namespace: str = "default") -> Path:
        readable = re.sub(r"[^A-Za-z0-9]+", "-", identity)[:60]
        path = self._layout.kubeconfig(f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}")
        content = kubeconfig(server=self.server, ca=self._authority.certificate, user=user, namespace=namespace)
        _write_secret(path, content.encode())
        return path


def _write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
