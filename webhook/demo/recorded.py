"""The same story without a control plane: recorded AdmissionReviews, sent over HTTPS to a running driftgate.

driftgate, its answers, its issue and its audit log are real; kubectl's words around the answers are repeated from the
real one, and a small stand-in answers what driftgate asks the API server. What is not as it was recorded is said.
"""

import json
import shlex
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from webhook.admission import Object, Webhook, labels
from webhook.break_glass import ASK, LABEL
from webhook.declared import last_applied
from webhook.demo.folder import Folder
from webhook.demo.gate import Gate
from webhook.demo.recordings import REVIEWS, WHY, Write, moved
from webhook.demo.stand_in import StandIn
from webhook.demo.terminal import Terminal, Unexpected

MANIFEST = "manifests/argo/deployment.yaml"

_FORBIDDEN = "Error from server (Forbidden): "
_NOT_EDITED = 'error: deployments.apps "web" could not be patched: '
_NOT_APPLIED = f"""{_FORBIDDEN}error when applying patch:
{{"spec":{{"replicas":3}}}}
to:
Resource: "apps/v1, Resource=deployments", GroupVersionKind: "apps/v1, Kind=Deployment"
Name: "web", Namespace: "guestbook"
for: "{MANIFEST}": error when patching "{MANIFEST}": """

_SCALE = "kubectl scale deployment web -n guestbook --replicas=5"
_EDIT = "KUBE_EDITOR=\"sed -i 's/replicas: 3/replicas: 4/'\" kubectl edit deployment web -n shop"
_RESTART = "kubectl rollout restart deployment web -n guestbook"
_ASK = f'kubectl annotate deployment web -n guestbook {ASK}="{WHY}"'
_SYNC = f"kubectl apply --field-manager=argocd-controller -f {MANIFEST}"
_END = f"kubectl annotate deployment web -n guestbook {ASK}-"


class Recorded:
    """The demo without a control plane: `with` starts and ends it."""

    def __init__(self, folder: Path, terminal: Terminal) -> None:
        self._terminal = terminal
        self._folder = Folder(folder, terminal)
        self._stand_in = StandIn(may_break_glass="bob")
        settings = {"tracker": {"repository": str(self._folder.repository)}}
        self._gate = Gate(self._folder.driftgate, settings=settings, progress=terminal.progress)
        self._ends = ExitStack()

    def __enter__(self) -> Self:
        self._terminal.title(
            "driftgate demo: what a real API server asked its webhooks, recorded, sent to driftgate over HTTPS"
        )
        self._terminal.say(
            "driftgate is real; kubectl's words around its answers are repeated. A small stand-in for the API"
        )
        self._terminal.say(
            "server knows what is stored and who may break the glass; recorded changes are made to what it stores."
        )
        self._terminal.say()
        with ExitStack() as ends:
            ends.enter_context(self._stand_in)
            ends.callback(self._end_driftgate)
            self._gate.equip(self._write_what_is_there())
            self._gate.start()
            self._ends = ends.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.close()

    def _write_what_is_there(self) -> Path:
        """Store the object as it was before all, put its manifest into Git; return how the stand-in is reached."""
        self._terminal.progress("making a sample Git repository")
        found = Write.load("kubectl-rollout-restart.csa").validate["request"]["oldObject"]
        self._stand_in.store(found)
        self._folder.commit({MANIFEST: last_applied(found) or {}})
        kubeconfig = self._folder.path / "stand-in.kubeconfig"
        self._stand_in.write_kubeconfig(kubeconfig)
        return kubeconfig

    def _end_driftgate(self) -> None:
        self._terminal.say()
        self._terminal.progress("stopping driftgate")
        self._gate.halt()

    def tell(self) -> None:
        """Show all of it."""
        self._refuse()
        self._break_the_glass()
        self._folder.show_issue()
        self._folder.show_records()
        self._end_the_window()

    def _refuse(self) -> None:
        self._terminal.step("alice, a developer, scales what Argo CD manages. Git says 3 replicas: refused.")
        scale = Write.load("kubectl-scale.csa")
        self._type(_SCALE, scale, refused=f'{_FORBIDDEN}admission webhook "scale.driftgate.dev"')
        self._terminal.step("She edits what Flux manages: refused as well.")
        edit = Write.load("kubectl-edit.ssa")
        self._type(_EDIT, edit, refused=f'{_NOT_EDITED}admission webhook "people.driftgate.dev"')
        self._terminal.step("A restart changes nothing that Git declares: it passes.")
        self._type(_RESTART, self._onto(Write.load("kubectl-rollout-restart.csa")), done="restarted")

    def _break_the_glass(self) -> None:
        ask = Write.load("kubectl-annotate.csa").asking()
        sync = Write.load("gitops-selfheal-deployment.csa")
        self._terminal.step("An emergency. alice asks for break-glass, but RBAC gives her no right to it.")
        self._type(_ASK, self._onto(ask), refused=f'{_FORBIDDEN}admission webhook "people.driftgate.dev"')
        self._terminal.step("bob, on call, has the right. He breaks the glass, for an hour, and scales.")
        self._type(_ASK, self._onto(ask.by_bob()), done="annotated")
        self._type(_SCALE, Write.load("kubectl-scale.csa").by_bob(), done="scaled")
        self._terminal.step("Argo CD sees 5 where Git says 3 and applies Git again. While the window is open: refused.")
        self._type(_SYNC, self._onto(sync), refused=f'{_NOT_APPLIED}admission webhook "held.driftgate.dev"')

    def _end_the_window(self) -> None:
        self._terminal.step("The incident is over: bob takes the ask away, driftgate its stamp, and Argo CD may sync.")
        end = Write.load("kubectl-annotate.csa").asking().by_bob().taken_back()
        self._type(_END, self._onto(end), done="annotated")
        self._terminal.wait("driftgate takes its stamp away", lambda: LABEL not in labels(self._stand_in.stored()))
        self._type(_SYNC, self._onto(Write.load("gitops-selfheal-deployment.csa")), done="configured")

    def _onto(self, write: Write) -> Write:
        return write.onto(self._stand_in.stored())

    def _type(self, command: str, write: Write, *, refused: str = "", done: str = "") -> None:
        """Send a write as the API server does and show the answer as kubectl does. Raises Unexpected."""
        self._terminal.command(command, write.note)
        review = write.patched({} if write.mutate is None else self._ask(Webhook.MUTATE, write.mutate))
        answer = self._ask(Webhook.VALIDATE, review)
        if answer["allowed"] is bool(refused):
            raise Unexpected(f"this should have been {'refused' if refused else 'allowed'}: {command}")
        if refused:
            self._terminal.output(f"{refused} denied the request: {answer['status']['message']}")
            return
        self._store(review["request"])
        warnings = [f"Warning: {warning}" for warning in answer.get("warnings") or ()]
        self._terminal.output("\n".join([*warnings, f"deployment.apps/web {done}"]))

    def _ask(self, webhook: Webhook, review: Object) -> Object:
        answer: Object = json.loads(self._gate.ask(webhook, json.dumps(review).encode()))["response"]
        return answer

    def _store(self, request: Object) -> None:
        """Have the stand-in store what was allowed. A scale is a change of the replicas of what is scaled."""
        found = request["object"]
        if request.get("subResource") == "scale":
            found = moved({}, {"spec": {"replicas": found["spec"]["replicas"]}}, self._stand_in.stored())
        self._stand_in.store(found)

    def invite(self) -> None:
        """Say how to go on by oneself."""
        ca_file = self._gate.ca_file.relative_to(self._folder.path)
        post = f"curl --cacert {ca_file} --json @$REVIEWS/kubectl-edit.ssa.validate.json {self._gate.url}/validate"
        self._terminal.invite(
            [*self._folder.exports(), f"REVIEWS={shlex.quote(str(REVIEWS))}"],
            [
                ("how each recording is decided, and by which rule", "driftgate explain $REVIEWS/*.validate.json"),
                ("ask it as the API server does", post),
                ("what came of it", "driftgate audit list; git -C deploy log -p driftgate/issues"),
            ],
        )
