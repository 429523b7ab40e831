"""What driftgate does, told with a real control plane: real kubectl, real answers.

Told as if by hand: each step says in a line what happens and why, then come the commands with what they print. A step
that turns out otherwise than told ends the demo, so the story can't go stale. With etcd, kube-apiserver and kubectl
alone no pods run, and nobody fills the ClusterRole `admin`; the gate does not mind.
"""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from webhook.break_glass import ACTIVE, ASK, LABEL
from webhook.demo import sample
from webhook.demo.control_plane import Binaries, ControlPlane
from webhook.demo.folder import Folder
from webhook.demo.stage import Stage
from webhook.demo.terminal import Terminal

DEVELOPERS, ON_CALL = "developers", "sre"
IN_EMERGENCY = f'kubectl annotate deployment/checkout -n shop {ASK}="INC-42 checkout is down"'
SYNC = f"kubectl apply {' '.join(sample.ARGOCD.flags)} -f argocd/checkout.yaml"


class Story:
    """The demo with a control plane: `with` starts and ends it."""

    def __init__(self, binaries: Binaries, folder: Path, terminal: Terminal) -> None:
        self._terminal = terminal
        self._binaries = binaries
        self._folder = Folder(folder, terminal)
        self._cluster = ControlPlane(binaries, directory=folder / "control-plane", progress=terminal.progress)
        settings = {"tracker": {"repository": str(self._folder.repository)}}
        self._stage = Stage(self._cluster, self._folder.driftgate, settings=settings, progress=terminal.progress)
        self._ends = ExitStack()

    def __enter__(self) -> Self:
        self._terminal.title("driftgate demo: driftgate in front of a real Kubernetes API server, on this machine")
        self._terminal.say("Argo CD and Flux are played by kubectl, with their accounts, field managers and marks.")
        self._terminal.say()
        with ExitStack() as ends:
            ends.enter_context(self._cluster)
            ends.callback(self._end_driftgate)
            self._stage.prepare()
            self._stage.start()
            self._stage.register()
            self._ends = ends.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.close()

    def _end_driftgate(self) -> None:
        self._terminal.say()
        self._terminal.progress("stopping driftgate")
        self._stage.stop()

    def tell(self) -> None:
        """Show all of it."""
        self._deploy()
        self._show_what_runs()
        self._refuse()
        self._let_pass()
        self._break_the_glass()
        self._hold()
        self._folder.show_issue()
        self._folder.show_records()
        self._end_the_window()

    def _deploy(self) -> None:
        """Put manifests into Git, and have them applied as Argo CD and as Flux do it."""
        self._terminal.progress("deploying the sample application from Git")
        self._folder.add_kubectl(self._binaries.kubectl)
        manifests = {"apps/checkout.yaml": sample.deployment(), "apps/settings.yaml": sample.config_map()}
        self._folder.commit(manifests)
        self._folder.write("argocd/checkout.yaml", sample.marked(sample.deployment(), sample.ARGOCD))
        self._folder.add_person("argocd", self._stage.deploy(sample.ARGOCD, *manifests.values()))
        self._stage.deploy(sample.FLUX, *manifests.values())
        self._folder.add_person("alice", self._stage.person("alice", DEVELOPERS))
        self._folder.add_person("bob", self._stage.person("bob", ON_CALL, may_break_glass=True))
        if self._binaries.kube_controller_manager is None:
            self._give_rights()
        if self._runs_pods:
            self._terminal.progress("waiting for its pods")
            for namespace in (sample.ARGOCD.namespace, sample.FLUX.namespace):
                self._wait_for_pods(namespace)

    def _wait_for_pods(self, namespace: str) -> None:
        self._cluster.kubectl("rollout", "status", "deployment/checkout", "-n", namespace, "--timeout=50s", check=True)

    def _give_rights(self) -> None:
        """Let people do what the ClusterRole `admin` would: it is kube-controller-manager that fills it."""
        kinds = "deployments.apps,deployments.apps/scale,replicasets.apps,configmaps,secrets,pods,events"
        verbs = "get,list,watch,create,update,patch,delete"
        role = ("create", "clusterrole", "demo-people", f"--resource={kinds}", f"--verb={verbs}")
        groups = (f"--group={DEVELOPERS}", f"--group={ON_CALL}")
        self._cluster.kubectl(*role, check=True)
        self._cluster.kubectl(
            "create", "clusterrolebinding", "demo-people", "--clusterrole=demo-people", *groups, check=True
        )

    @property
    def _runs_pods(self) -> bool:
        return not self._binaries.missing

    def _show_what_runs(self) -> None:
        pods = "Its pods run." if self._runs_pods else "No controllers here, so no pods run."
        self._terminal.step(f"The sample application, applied as Argo CD (shop) and Flux (bank) do it. {pods}")
        self._folder.type("kubectl get deployments -A", who="alice")

    def _refuse(self) -> None:
        self._terminal.step("alice, a developer, scales by hand. Git says 3 replicas: refused.")
        self._folder.type("kubectl scale deployment/checkout -n shop --replicas=5", who="alice", refused=True)
        self._terminal.step("She edits the image of what Flux manages: refused as well.")
        edit = 'KUBE_EDITOR="sed -i.bak s/1.4.0/1.4.1/" kubectl edit deployment/checkout -n bank'
        self._folder.type(edit, who="alice", refused=True)

    def _let_pass(self) -> None:
        self._terminal.step("A restart changes nothing that Git declares: it passes.")
        self._folder.type("kubectl rollout restart deployment/checkout -n shop", who="alice")
        if self._runs_pods:
            self._wait_for_pods("shop")

    def _break_the_glass(self) -> None:
        self._terminal.step("An emergency. alice asks for break-glass, but RBAC gives her no right to it.")
        self._folder.type(IN_EMERGENCY, who="alice", refused=True)
        self._terminal.step("bob, on call, has the right. He breaks the glass, for an hour, and scales.")
        self._folder.type(IN_EMERGENCY, who="bob")
        self._folder.type("kubectl scale deployment/checkout -n shop --replicas=5", who="bob")

    def _hold(self) -> None:
        self._terminal.step("Argo CD sees 5 where Git says 3 and applies Git again. While the window is open: refused.")
        self._folder.type(SYNC, who="argocd", refused=True)

    def _end_the_window(self) -> None:
        self._terminal.step("The incident is over: bob takes the ask away, driftgate its stamp, and Argo CD may sync.")
        self._folder.type(f"kubectl annotate deployment/checkout -n shop {ASK}-", who="bob")
        self._terminal.wait("driftgate takes its stamp away", lambda: not self._stamped())
        self._folder.type(f"kubectl get deployments -A -l {LABEL}={ACTIVE}", who="bob")
        self._folder.type(SYNC, who="argocd")
        if self._runs_pods:
            self._wait_for_pods("shop")
        self._folder.type("kubectl get deployments -n shop", who="bob")

    def _stamped(self) -> str:
        return self._cluster.kubectl("get", "deployments", "-A", "-l", f"{LABEL}={ACTIVE}", "-o", "name").stdout

    def invite(self) -> None:
        """Say how to go on by oneself."""
        self._terminal.invite(
            self._folder.exports("alice"),
            [
                ("refused: it is in Git", "kubectl set env deployment/checkout -n bank LOG_LEVEL=debug"),
                ("passes: it is not in Git", "kubectl create deployment mine -n shop --image=mine"),
                (
                    "bob may break the glass",
                    f'KUBECONFIG=bob.kubeconfig kubectl annotate cm/settings -n shop {ASK}="INC-43 why"',
                ),
                ("what came of it", "driftgate audit list; git -C deploy log -p driftgate/issues"),
            ],
        )
