"""The registration as `driftgate manifests` prints it, and what `manifests/base` installs: accepted, narrow, enough."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

import webhook
from tests.e2e.conftest import unavailable
from tests.e2e.terminal import REASON, eventually, place_of
from webhook.demo.sample import ARGOCD, config_map, deployment

pytestmark = pytest.mark.e2e

ROOT = Path(webhook.__file__).parents[1]
BASE = ROOT / "manifests" / "base"
ASK = f'driftgate.dev/break-glass="{REASON}"'


@pytest.fixture(scope="module")
def shop(stage):
    """A place of Argo CD's with a ConfigMap."""
    place = place_of(stage, ARGOCD, "registration")
    place.deployed(config_map())
    return place


@pytest.fixture
def calls(stage):
    """Count the API server's calls to each of our webhooks since the last time."""

    def total():
        metrics = stage.cluster.kubectl("get", "--raw", "/metrics", check=True).stdout
        found = re.findall(r"^apiserver_admission_webhook_request_total\{([^}]*)\} (\d+)", metrics, re.MULTILINE)
        counts: dict[str, int] = {}
        for labels, count in found:
            name = re.search(r'name="(\w+)\.driftgate\.dev"', labels)
            if name:
                counts[name[1]] = counts.get(name[1], 0) + int(count)
        return counts

    before = total()

    def since():
        nonlocal before
        now = total()
        more = {name: count - before.get(name, 0) for name, count in now.items() if count != before.get(name, 0)}
        before = now
        return more

    return since


def test_what_nobody_manages_costs_no_call(shop, calls):
    """matchConditions keep away unmanaged writes, leases, events and access reviews, by people and by programs."""
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "leader", "annotations": {"driftgate.dev/source": "https://git.example.org//x"}},
        "spec": {"holderIdentity": "me"},
    }
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "happened", "annotations": {"driftgate.dev/source": "https://git.example.org//x"}},
        "involvedObject": {"kind": "ConfigMap", "name": "settings", "namespace": "registration"},
    }

    assert shop.alice("create configmap scratch")
    assert shop.alice("label configmap scratch a=b")
    assert shop.alice("delete configmap scratch")
    assert shop.robot("create secret generic robots --from-literal=a=b")
    assert shop.admin("create -f -", lease)
    assert shop.admin("label lease leader a=b")
    assert shop.admin("create -f -", event)
    assert shop.admin("delete event happened")
    shop.alice("auth can-i delete pods")

    assert calls() == {}


def test_a_pods_life_costs_no_call(complete_control_plane, shop, calls):
    """Nor does what the cluster does with a Deployment that Git manages, down to its pods' last status."""
    shop.deployed(deployment("alive", replicas=2))
    assert shop.alice("rollout status deployment/alive --timeout=60s")
    calls()  # nothing of this was a person's; what follows is
    pod = shop.admin("get pods -l app=alive -o jsonpath={.items[0].metadata.name}").stdout
    assert shop.alice(f"delete pod {pod}")
    assert shop.alice("annotate replicasets -l app=alive seen=yes")
    eventually(lambda: shop.admin("get deployment alive -o jsonpath={.status.readyReplicas}").stdout == "2")

    assert calls() == {}


def test_a_managed_write_costs_one_call(shop, calls):
    """A person's or another controller's write to what Git manages is asked about once, a reconciler's not at all."""
    assert not shop.alice("label configmap/settings a=b")
    assert calls() == {"people": 1}
    assert not shop.alice("delete configmap/settings")
    assert calls() == {"people": 1}
    assert not shop.alice("create -f -", shop.manifest(config_map("by-hand")))
    assert calls() == {"people": 1}
    assert shop.robot("annotate configmap/settings a=b")
    assert calls() == {"controllers": 1}
    assert shop.reconciler("label configmap/settings seen=yes")
    shop.deployed({**config_map(), "data": {"theme": "light"}})
    shop.deployed(config_map())
    assert shop.reconciler("delete configmap/settings --dry-run=server")
    assert calls() == {}


def test_an_ask_costs_one_call_more(shop, calls):
    """Asking is stamped by one webhook and checked by another; while it is open, the reconciler is asked about."""
    shop.deployed(config_map("asked"))

    assert shop.bob(f"annotate configmap/asked {ASK}")
    assert calls() == {"asks": 1, "people": 1}
    assert shop.reconciler("label configmap/asked seen=yes")
    assert calls() == {"asks": 1, "held": 1}


def test_only_a_scale_by_the_cluster_costs_nothing(complete_control_plane, shop, calls):
    """A person's scale is asked about, for nothing shows whose it is; an autoscaler's is not."""
    shop.deployed(deployment("stretchy", replicas=1))
    assert shop.alice("create deployment free --image=web --replicas=1")
    assert shop.alice("scale deployment/free --replicas=2")
    assert calls().keys() == {"scale"}  # twice where the deployment controller writes at the same moment
    assert not shop.alice("scale deployment/stretchy --replicas=2")
    assert calls().keys() == {"scale"}

    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "stretchy"}
    shop.deployed(
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "stretchy"},
            "spec": {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 4},
        }
    )
    eventually(lambda: shop.get("deployment/stretchy")["spec"]["replicas"] == 2)
    assert calls() == {}


def test_driftgates_own_namespace_is_left_out(stage, calls):
    """It can always be repaired, whatever marks stand on it."""
    marked = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "own",
            "namespace": "driftgate",
            "annotations": {"driftgate.dev/source": "https://git.example.org//x"},
        },
    }

    stage.apply(marked)
    stage.cluster.kubectl("delete", "configmap", "own", "-n", "driftgate", check=True)

    assert calls() == {}


def test_it_is_applied_again_without_a_change(stage):
    """What `driftgate manifests` prints is what the API server keeps."""
    again = stage.cluster.kubectl("apply", "-f", str(stage.registration_file), "--dry-run=server", check=True)
    diff = stage.cluster.kubectl("diff", "-f", str(stage.registration_file))

    assert [line.split()[1] for line in again.stdout.splitlines()] == ["unchanged", "unchanged"], again.stdout
    assert (diff.returncode, diff.stdout) == (0, "")
    assert not again.stderr


def test_the_readmes_command_switches_it_off(stage, shop):
    """One command, and people write as before; registered again, they are refused again."""
    shop.deployed(config_map("switched"))
    readme = (ROOT / "README.md").read_text()
    (command,) = re.findall(r"^kubectl (delete validatingwebhookconfiguration.*)$", readme, re.MULTILINE)
    write = """patch configmap/switched -p '{"data":{"theme":"light"}}'"""
    assert not shop.alice(write)

    try:
        off = stage.cluster.kubectl(*shlex.split(command), check=True)
        passed = eventually(lambda: shop.alice(write))
    finally:
        stage.register()

    assert len(off.stdout.splitlines()) == 2
    assert "driftgate" not in passed.stderr
    assert not shop.alice("label configmap/switched a=b")


# manifests/base


@pytest.fixture(scope="module")
def base(stage):
    """What `kubectl kustomize manifests/base` prints."""
    if not (BASE / "kustomization.yaml").exists():
        unavailable("manifests/base has no kustomization yet")
    printed = stage.cluster.kubectl("kustomize", str(BASE), check=True).stdout
    return list(yaml.safe_load_all(printed))


def test_the_base_is_accepted(stage, base):
    """The API server takes every object of it."""
    done = stage.cluster.kubectl("apply", "-k", str(BASE), "--dry-run=server")

    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(base)


def test_the_base_is_installed(complete_control_plane, stage, base, tmp_path):
    """In another namespace it is applied without a warning, its pod is made, and its account may do what it must."""
    renamed = [renamed_to("installed", found) for found in base]
    kubectl, file = stage.cluster.kubectl, tmp_path / "base.yaml"
    file.write_text(yaml.safe_dump_all(renamed))
    applied = kubectl("apply", "-f", str(file), check=True)
    try:
        pod = eventually(
            lambda: kubectl("get", "pods", "-n", "installed", "-o", "jsonpath={.items[*].metadata.name}").stdout
        )
        events = kubectl("get", "events", "-n", "installed", "--field-selector=reason=FailedCreate").stdout
        can = {
            question: kubectl(
                "auth", "can-i", *question.split(), "--as=system:serviceaccount:installed:driftgate-controller"
            ).stdout.strip()
            for question in QUESTIONS
        }
    finally:
        kubectl("delete", "-f", str(file), "--wait=false", "--ignore-not-found")

    assert not applied.stderr
    assert pod == "driftgate-0"
    assert not events
    assert can == QUESTIONS


QUESTIONS = {
    # while a write waits
    "create subjectaccessreviews.authorization.k8s.io": "yes",
    "get deployments.apps -n shop": "yes",
    "get statefulsets.apps -n shop": "yes",
    # what looks after windows
    "list configmaps -A": "yes",
    "list deployments.apps -A": "yes",
    "get secrets -n shop": "yes",
    "patch secrets -n shop": "yes",
    "patch deployments.apps -n shop": "yes",
    "patch clusterroles.rbac.authorization.k8s.io": "yes",
    "create events -n shop": "yes",
    "create leases.coordination.k8s.io -n installed": "yes",
    # and no more
    "create deployments.apps -n shop": "no",
    "delete deployments.apps -n shop": "no",
    "create secrets -n installed": "no",
    "create pods --subresource=exec -n shop": "no",
    "create serviceaccounts --subresource=token -n shop": "no",
    "impersonate users": "no",
    "escalate clusterroles.rbac.authorization.k8s.io": "no",
    "bind clusterroles.rbac.authorization.k8s.io": "no",
    "break-glass deployments.apps -n shop": "no",
}


def renamed_to(namespace, manifest):
    """Return the object in another namespace; what belongs to none gets another name."""
    meta = dict(manifest["metadata"])
    renamed = manifest | {"metadata": meta}
    if manifest["kind"] == "Namespace":
        meta["name"] = namespace
    elif "namespace" in meta:
        meta["namespace"] = namespace
    else:
        meta["name"] = f"{namespace}-{meta['name']}"
    if manifest["kind"] == "ClusterRoleBinding":
        renamed["roleRef"] = manifest["roleRef"] | {"name": f"{namespace}-{manifest['roleRef']['name']}"}
    if "subjects" in manifest:
        renamed["subjects"] = [subject | {"namespace": namespace} for subject in manifest["subjects"]]
    return renamed
