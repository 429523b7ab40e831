"""People at their terminals: kubectl commands as they are typed in one namespace, and what can be seen afterwards."""

import json
import re
import shlex
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from webhook.cli.audit import as_json
from webhook.demo.sample import PUSH, Applied, Manifest, marked
from webhook.demo.stage import Stage
from webhook.errors import RecordsError
from webhook.ledger import LedgerReader

ASK = "driftgate.dev/break-glass"
STAMPS = ("id", "by", "until", "fields", "seal")
REASON = "INC-42 checkout is down"
RESOURCES = {
    "configmap": "api/v1/configmaps",
    "deployment": "apis/apps/v1/deployments",
    "pod": "api/v1/pods",
    "quota": "api/v1/resourcequotas",
    "secret": "api/v1/secrets",
    "service": "api/v1/services",
}
ULID = "[0-9A-HJKMNP-TV-Z]{26}"


def eventually(look: Callable[[], Any], seconds: float = 60.0) -> Any:
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
        """Return an object as it is stored, None if it is not there. Asked without kubectl, which takes its time."""
        kind, _, name = what.partition("/")
        group, _, resources = RESOURCES[kind.lower()].rpartition("/")
        cluster = self.stage.cluster
        tls = ssl.create_default_context(cafile=cluster.ca_file)
        tls.load_cert_chain(cluster.ca_file.with_name("admin.crt"), cluster.ca_file.with_name("admin.key"))
        url = f"{cluster.server}/{group}/namespaces/{self.namespace}/{resources}/{name}"
        try:
            with urllib.request.urlopen(url, context=tls, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    return None
            raise

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


def issues_about(stage: Stage, word: str) -> list[str]:
    """Return the text of every issue in which a word stands: an object's name, a window's id."""
    if not (stage.repository / "HEAD").exists() or not git(stage, "for-each-ref", "refs/heads/driftgate/issues"):
        return []
    grep = ["git", "-C", str(stage.repository), "grep", "-l", "-F", "-e", word, "driftgate/issues", "--", "issues/"]
    found = subprocess.run(grep, capture_output=True, text=True, check=False).stdout.split()
    return [git(stage, "show", name) for name in found]


def issue(stage: Stage, word: str) -> str:
    """Return the one issue in which a word stands, as soon as it is filed."""
    found = eventually(lambda: issues_about(stage, word))
    assert len(found) == 1, found
    return str(found[0])


def records(stage: Stage, **wanted: Any) -> list[dict[str, Any]]:
    """Return the records that say what is wanted, the newest first, as the ledger has them now."""
    try:
        with LedgerReader(stage.directory / "state" / "ledger.sqlite") as ledger:
            rows = ledger.list(limit=100_000)
    except RecordsError:  # the controller has not made it yet
        return []
    found = json.loads(json.dumps([as_json(row) for row in rows]))
    return [record for record in found if all(record[key] == value for key, value in wanted.items())]


def record(stage: Stage, **wanted: Any) -> dict[str, Any]:
    """Return the newest record that says what is wanted, as soon as the controller has taken it into the ledger."""
    found: dict[str, Any] = eventually(lambda: records(stage, **wanted))[0]
    return found


def settled(stage: Stage) -> None:
    """Wait until the controller has looked at all that happened before: once at the records, once at the rest."""
    for _ in range(2):
        name = f"canary-{time.monotonic_ns()}"
        canary = marked({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}, PUSH)
        canary["metadata"]["namespace"] = "default"
        assert stage.cluster.kubectl("create", "-f", "-", input=json.dumps(canary)).returncode
        record(stage, name=name)


def record_id(denial: list[str]) -> str:
    """Return the id in the last line of a denial."""
    found = re.fullmatch(f"Record ({ULID})", denial[-1])
    assert found, denial
    return found[1]
