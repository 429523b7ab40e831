"""People at their terminals: kubectl commands as they are typed in one namespace, and what can be seen afterwards."""

import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from webhook.demo.sample import Applied, Manifest, marked
from webhook.demo.stage import Stage

ASK = "driftgate.dev/break-glass"
STAMPS = ("id", "by", "until", "fields", "seal")
REASON = "INC-42 checkout is down"
ULID = "[0-9A-HJKMNP-TV-Z]{26}"


def eventually(look: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Return what `look` finds as soon as it finds something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"it did not happen within {seconds:.0f} s"
        time.sleep(0.1)
    return found


@dataclass(frozen=True, slots=True)
class Said:
    """What a command printed, as a person reads it. True if it succeeded."""

    passed: bool
    stdout: str
    stderr: str

    def __bool__(self) -> bool:
        return self.passed

    @property
    def denial(self) -> list[str]:
        """The lines of our denial; empty if it was not us who refused."""
        _, _, message = self.stderr.partition('.driftgate.dev" denied the request: ')
        return message.splitlines()


@dataclass(frozen=True, slots=True)
class Terminal:
    """What one user types, in one namespace."""

    stage: Stage
    config: Path
    namespace: str

    def __call__(self, command: str, manifest: Manifest | str = "", *, env: Mapping[str, str] | None = None) -> Said:
        """Run `kubectl COMMAND`; `manifest` is what `-f -` reads."""
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        verb, *rest = shlex.split(command)
        where = [] if "--raw" in rest else ["-n", self.namespace]
        done = self.stage.cluster.kubectl(verb, *where, *rest, config=self.config, input=text, env=env)
        return Said(done.returncode == 0, done.stdout, done.stderr)

    def edits(self, what: str, script: str, folder: Path) -> Said:
        """Run `kubectl edit` with sed for an editor."""
        return self(f"edit {what}", env={"KUBE_EDITOR": f"sed -i {shlex.quote(script)}", "TMPDIR": str(folder)})


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace in which a tool applies its application, and who works there.

    `alice` has ClusterRole `admin` there, `bob` and `carol` also the right to break the glass, the `admin` of the
    cluster may do everything, `robot` is a service account that is nobody's reconciler.
    """

    stage: Stage
    applied: Applied
    reconciler: Terminal
    alice: Terminal
    bob: Terminal
    carol: Terminal
    admin: Terminal
    robot: Terminal

    @property
    def namespace(self) -> str:
        return self.applied.namespace

    def manifest(self, manifest: Manifest) -> Manifest:
        """Return the manifest as it stands in Git, with the tool's mark."""
        return marked(manifest, self.applied)

    def deploy(self, *manifests: Manifest, flags: str = "") -> Said:
        """Apply manifests as the tool does; return what was said about the last one."""
        for manifest in manifests:
            said = self.reconciler(f"apply {shlex.join(self.applied.flags)} {flags} -f -", self.manifest(manifest))
        return said

    def deployed(self, *manifests: Manifest) -> None:
        """Have manifests applied, whatever it takes."""
        said = self.deploy(*manifests)
        assert said, said.stderr

    def title(self, name: str) -> str:
        """Return how a message calls the tool and its application."""
        return {
            "argocd": 'Argo CD application "checkout"',
            "flux": 'Flux Kustomization "flux-system/checkout"',
            "push": f'the pipeline of "https://git.example.org/checkout/deploy//apps/{name}.yaml"',
        }[self.applied.tool]

    def get(self, what: str) -> Any:
        """Return an object as it is stored, None if it is not there."""
        said = self.admin(f"get {what} -o json --ignore-not-found --show-managed-fields")
        assert said, said.stderr
        return json.loads(said.stdout) if said.stdout else None

    def look(self, what: str) -> Any:
        """Return what somebody wrote into an object: nothing that the cluster itself goes on writing."""
        found = self.get(what)
        if found is None:
            return None
        meta = found["metadata"]
        annotations = dict(meta.get("annotations", {}))
        annotations.pop("deployment.kubernetes.io/revision", None)
        kept = {key: meta.get(key) for key in ("uid", "labels", "ownerReferences", "finalizers", "deletionTimestamp")}
        return {key: value for key, value in found.items() if key not in {"metadata", "status"}} | {
            "metadata": kept | {"annotations": annotations}
        }

    def stamp(self, what: str) -> dict[str, str]:
        """Return all of driftgate's own annotations and labels on an object, with short names."""
        meta = self.get(what)["metadata"]
        found = {key.removeprefix(ASK): value for key, value in meta.get("annotations", {}).items() if ASK in key}
        if ASK in meta.get("labels", {}):
            found["label"] = meta["labels"][ASK]
        return {key.removeprefix("-") or "ask": value for key, value in found.items()}

    def is_free(self, what: str) -> bool:
        """Tell whether nothing of break-glass stands on an object."""
        return not self.stamp(what)

    def opened(self, who: Terminal, what: str, reason: str = REASON) -> str:
        """Have somebody open a window; return its id."""
        said = who(f"annotate {what} {ASK}={shlex.quote(reason)}")
        assert said, said.stderr
        return self.stamp(what)["id"]


def place_of(stage: Stage, applied: Applied, namespace: str) -> Place:
    """Make a namespace in which a tool applies, with people and their rights."""
    applied = replace(applied, namespace=namespace)
    reconciler = stage.deploy(applied)
    robot = stage.cluster.service_account(namespace, "robot")
    binding = ("create", "rolebinding", "robot", "--clusterrole=admin", f"--serviceaccount={namespace}:robot")
    stage.cluster.kubectl(*binding, "-n", namespace, check=True)
    configs = {
        "alice": stage.person("alice", "developers", namespace=namespace),
        "bob": stage.person("bob", "on-call", namespace=namespace, may_break_glass=True),
        "carol": stage.cluster.kubeconfig("carol", ["on-call"]),
        "robot": robot,
    }
    people = {name: Terminal(stage, config, namespace) for name, config in configs.items()}
    eventually(lambda: people["bob"]("auth can-i break-glass deployments"))  # the binding that was made last
    return Place(
        stage=stage,
        applied=applied,
        reconciler=Terminal(stage, reconciler, namespace),
        admin=Terminal(stage, stage.cluster.admin, namespace),
        **people,
    )


# What driftgate keeps


def git(stage: Stage, *args: str) -> str:
    """Run git in the repository that issues are kept in."""
    command = ["git", "-C", str(stage.repository), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def issues(stage: Stage) -> list[str]:
    """Return the text of every issue on the branch."""
    if not (stage.repository / "HEAD").exists():
        return []
    names = git(stage, "ls-tree", "--name-only", "driftgate/issues", "issues/").split()
    return [git(stage, "show", f"driftgate/issues:{name}") for name in names]


def issues_about(stage: Stage, word: str) -> list[str]:
    """Return the issues in which a word stands: an object's name, a window's id."""
    return [text for text in issues(stage) if word in text]


def issue(stage: Stage, word: str) -> str:
    """Return the one issue in which a word stands, as soon as it is filed."""
    found = eventually(lambda: issues_about(stage, word))
    assert len(found) == 1, found
    return str(found[0])


def records(stage: Stage, *filters: str) -> list[dict[str, Any]]:
    """Return records, the newest first, as `driftgate audit list` has them now."""
    found: list[dict[str, Any]] = json.loads(
        stage.driftgate("audit", "list", "-o", "json", "--limit", "10000", *filters)
    )
    return found


def record(stage: Stage, *filters: str, **wanted: Any) -> dict[str, Any]:
    """Return the newest record that says what is wanted, as soon as the controller has taken it into the ledger."""

    def look() -> Any:
        return [r for r in records(stage, *filters) if all(r[key] == value for key, value in wanted.items())]

    found: dict[str, Any] = eventually(look)[0]
    return found


def passes_of_the_controller(stage: Stage) -> None:
    """Wait until the controller has surely looked at everything that happened before."""
    time.sleep(3.0)


def record_id(denial: list[str]) -> str:
    """Return the id in the last line of a denial."""
    found = re.fullmatch(f"Record ({ULID})", denial[-1])
    assert found, denial
    return found[1]
