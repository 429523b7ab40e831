"""What a person may not do to what Git manages, typed at a real kubectl; and what is read then.

Each refusal names object, tool and application in its first line, shows each field with its old and its new value, and
gives the id of its record. Afterwards the object is what it was.
"""

import re
from dataclasses import dataclass

import pytest

from tests.e2e.terminal import ULID, eventually, place_of, record, record_id, records
from webhook.demo.sample import ARGOCD, FLUX, IMAGE, PUSH, config_map, deployment, marked, secret

pytestmark = pytest.mark.e2e

CHECKOUT = "deployment/checkout"
NEW_IMAGE = "registry.example.com/shop/checkout:6.6.6"
CONTAINER = '.spec.template.spec.containers[name="app"]'
REPLICAS = ".spec.replicas: 3 -> 5"
OTHER_IMAGE = f"{CONTAINER}.image: {IMAGE} -> {NEW_IMAGE}"
DEBUG = f'{CONTAINER}.env[name="LOG_LEVEL"].value: info -> debug'
CHANGING = "this change would drift from Git:"
DELETING = "deleting it would drift from Git."
CREATING = "creating it by hand would drift from Git."


@pytest.fixture(scope="module")
def shop(place):
    """A Deployment and a ConfigMap as the tool applies them, and a ConfigMap that nobody manages."""
    place.deployed(deployment(), config_map())
    place.admin("create configmap scratch")
    return place


@pytest.fixture(scope="module")
def as_deployed(shop):
    return shop.look(CHECKOUT)


@pytest.fixture
def as_it_was(shop, as_deployed):
    """The Deployment as it was deployed; deployed anew for the next test if this one has changed it."""
    yield as_deployed
    if shop.look(CHECKOUT) != as_deployed:
        shop.admin(f"annotate {CHECKOUT} driftgate.dev/break-glass=cleaning-up --overwrite")
        shop.admin(f"delete {CHECKOUT} --ignore-not-found")
        shop.deployed(deployment())
        as_deployed |= shop.look(CHECKOUT)


@dataclass(frozen=True)
class Typed:
    """A command, what `-f -` reads, and the lines between the first of the denial and `Change it in Git`."""

    command: str
    drift: tuple[str, ...]
    change: dict[str, object] | None = None
    what: str = CHANGING


TYPED = {
    "scale": Typed(f"scale {CHECKOUT} --replicas=5", (REPLICAS,)),
    "patch strategic": Typed(
        f"""patch {CHECKOUT} -p '{{"spec":{{"template":{{"spec":{{"containers":"""
        f"""[{{"name":"app","image":"{NEW_IMAGE}"}}]}}}}}}}}'""",
        (OTHER_IMAGE,),
    ),
    "patch strategic, a sidecar": Typed(
        f"""patch {CHECKOUT} -p '{{"spec":{{"template":{{"spec":{{"containers":"""
        """[{"name":"spy","image":"spy:1"}]}}}}'""",
        ('.spec.template.spec.containers[name="spy"]: (absent) -> {"image":"spy:1",',),
    ),
    "patch merge": Typed(f"""patch {CHECKOUT} --type=merge -p '{{"spec":{{"replicas":5}}}}'""", (REPLICAS,)),
    "patch json": Typed(
        f"""patch {CHECKOUT} --type=json -p '[{{"op":"replace","path":"/spec/template/spec/containers/0/image","""
        f""""value":"{NEW_IMAGE}"}},{{"op":"replace","path":"/spec/replicas","value":5}}]'""",
        (REPLICAS, OTHER_IMAGE),
    ),
    "patch the scale": Typed(
        f"""patch {CHECKOUT} --subresource=scale --type=merge -p '{{"spec":{{"replicas":5}}}}'""", (REPLICAS,)
    ),
    "set image": Typed(f"set image {CHECKOUT} app={NEW_IMAGE}", (OTHER_IMAGE,)),
    "set env": Typed(f"set env {CHECKOUT} LOG_LEVEL=debug", (DEBUG,)),
    "set env, one more": Typed(
        f"set env {CHECKOUT} TRACE=on",
        (f'{CONTAINER}.env[name="TRACE"]: (absent) -> {{"name":"TRACE","value":"on"}}',),
    ),
    "set resources": Typed(
        f"set resources {CHECKOUT} --limits=cpu=200m --requests=cpu=50m",
        (f"{CONTAINER}.resources.requests.cpu: 100m -> 50m", f"{CONTAINER}.resources.limits.cpu: (absent) -> 200m"),
    ),
    "rollout pause": Typed(f"rollout pause {CHECKOUT}", (".spec.paused: (absent) -> true",)),
    "apply": Typed("apply -f -", (OTHER_IMAGE,), deployment(image=NEW_IMAGE)),
    "apply --server-side": Typed(
        "apply --server-side --force-conflicts -f -", (OTHER_IMAGE,), deployment(image=NEW_IMAGE)
    ),
    "apply --server-side as the tool": Typed(
        "apply --server-side --force-conflicts --field-manager=argocd-controller -f -",
        (OTHER_IMAGE,),
        deployment(image=NEW_IMAGE),
    ),
    "replace": Typed("replace -f -", (OTHER_IMAGE,), deployment(image=NEW_IMAGE)),
    "replace --force": Typed("replace --force -f -", (), deployment(image=NEW_IMAGE), DELETING),
    "label": Typed(f"label {CHECKOUT} team=blue", (".metadata.labels.team: (absent) -> blue",)),
    "label, another value": Typed(
        f"label {CHECKOUT} app=other --overwrite", (".metadata.labels.app: checkout -> other",)
    ),
    "annotate": Typed(f"annotate {CHECKOUT} note=hello", (".metadata.annotations.note: (absent) -> hello",)),
    "delete": Typed(f"delete {CHECKOUT}", (), what=DELETING),
    "delete --force": Typed(f"delete {CHECKOUT} --force --grace-period=0", (), what=DELETING),
    "delete --all": Typed("delete deployments --all", (), what=DELETING),
    "delete the collection": Typed("delete --raw /apis/apps/v1/namespaces/NAMESPACE/deployments", (), what=DELETING),
}


def check(said, shop, *drift, what=CHANGING, kind="Deployment", name="checkout"):
    """Read the denial as the person does who meets it."""
    assert not said
    assert said.denial, said.stderr
    first, *lines = said.denial
    assert first == f"{kind} {shop.namespace}/{name} is managed by {shop.title(name)}; {what}"
    fields = [line for line in lines if line.startswith("  ")]
    assert len(fields) == len(drift), said.stderr
    for field, expected in zip(fields, drift, strict=True):
        assert field.startswith(f"  {expected}")
    place, way_out, last = lines[len(fields) :][:3]
    assert place.startswith("Change it in Git, ")
    assert "In an emergency" in way_out
    assert "driftgate.dev/break-glass" in way_out
    assert re.fullmatch(f"Record {ULID}", last)


@pytest.mark.parametrize("typed", TYPED.values(), ids=TYPED)
def test_drift_is_refused(shop, as_it_was, typed):
    """Whichever way a person goes, what Git manages stays as it is."""
    manifest = marked(typed.change, shop.applied) if typed.change else ""

    said = shop.alice(typed.command.replace("NAMESPACE", shop.namespace), manifest)

    check(said, shop, *typed.drift, what=typed.what)
    assert shop.look(CHECKOUT) == as_it_was


@pytest.mark.parametrize(
    ("script", "drift"),
    [
        (rf"s|^\( *\)image: .*|\1image: {NEW_IMAGE}|", OTHER_IMAGE),
        ("s/^  replicas: 3/  replicas: 5/", REPLICAS),
        ("s/value: info/value: debug/", DEBUG),
    ],
    ids=["image", "replicas", "env"],
)
def test_an_edit_is_refused(shop, as_it_was, tmp_path, script, drift):
    """`kubectl edit` gets the same answer."""
    said = shop.alice.edits(CHECKOUT, script, tmp_path)

    check(said, shop, drift)
    assert shop.look(CHECKOUT) == as_it_was


def test_the_mark_can_not_be_taken_away(shop, as_it_was):
    """Nobody escapes by removing the mark, not even together with a change."""
    command, path, value = {
        "argocd": (
            "annotate deployment/checkout argocd.argoproj.io/tracking-id-",
            '.metadata.annotations["argocd.argoproj.io/tracking-id"]',
            f"checkout:apps/Deployment:{shop.namespace}/checkout",
        ),
        "flux": (
            "label deployment/checkout kustomize.toolkit.fluxcd.io/name-",
            '.metadata.labels["kustomize.toolkit.fluxcd.io/name"]',
            "checkout",
        ),
        "push": (
            "annotate deployment/checkout driftgate.dev/source-",
            '.metadata.annotations["driftgate.dev/source"]',
            "https://git.example.org/checkout",
        ),
    }[shop.applied.tool]

    said = shop.alice(command)

    check(said, shop, f"{path}: {value}")
    assert said.denial[1].endswith(" -> (absent)")
    replaced = shop.alice("replace -f -", deployment(image=NEW_IMAGE))
    assert path in replaced.stderr
    assert OTHER_IMAGE in replaced.stderr
    assert shop.look(CHECKOUT) == as_it_was


def test_a_mark_can_not_be_added(shop):
    """Nobody adopts an object into an application by hand."""
    before = shop.look("configmap/scratch")
    command = {
        "argocd": "annotate configmap/scratch"
        f" argocd.argoproj.io/tracking-id=checkout:/ConfigMap:{shop.namespace}/scratch",
        "flux": "label configmap/scratch kustomize.toolkit.fluxcd.io/name=checkout"
        " kustomize.toolkit.fluxcd.io/namespace=flux-system",
        "push": "annotate configmap/scratch driftgate.dev/source=https://git.example.org/checkout/deploy//apps/scratch.yaml",
    }[shop.applied.tool]

    said = shop.alice(command)

    drift = [line.strip() for line in said.denial if ": (absent) -> " in line]
    check(said, shop, *drift, kind="ConfigMap", name="scratch")
    assert drift
    assert shop.look("configmap/scratch") == before


def test_nothing_is_created_by_hand(shop):
    """An object with a valid mark comes from Git, or not at all."""
    said = shop.alice("create -f -", shop.manifest(config_map("made-by-hand")))

    check(said, shop, what=CREATING, kind="ConfigMap", name="made-by-hand")
    assert shop.look("configmap/made-by-hand") is None


def test_what_a_controller_may_not_do(shop, as_it_was):
    """Other service accounts may not change what Git declares, take marks away, or delete."""
    said = shop.robot(f"set image {CHECKOUT} app={NEW_IMAGE}")

    check(said, shop, OTHER_IMAGE)
    check(shop.robot(f"scale {CHECKOUT} --replicas=5"), shop, REPLICAS)
    check(shop.robot(f"delete {CHECKOUT}"), shop, what=DELETING)
    assert shop.look(CHECKOUT) == as_it_was


def test_a_cluster_admin_is_a_person_too(shop, as_it_was):
    """Not even `cluster-admin` drifts without breaking the glass."""
    check(shop.admin(f"scale {CHECKOUT} --replicas=5"), shop, REPLICAS)

    assert shop.look(CHECKOUT) == as_it_was


def test_nobody_passes_for_the_reconciler(shop, as_it_was):
    """Who impersonates the reconciler is not the reconciler."""
    account = "system:serviceaccount:" + ":".join(shop.applied.account)

    check(shop.admin(f"set image {CHECKOUT} app={NEW_IMAGE} --as={account}"), shop, OTHER_IMAGE)

    assert shop.look(CHECKOUT) == as_it_was


def test_another_tools_reconciler_is_not_this_ones(shop, as_it_was, stage):
    """Flux may not write what Argo CD manages, nor the other way round."""
    other = stage.reconciler(FLUX if shop.applied.tool == "argocd" else ARGOCD)

    said = type(shop.alice)(stage, other, shop.namespace)(f"set image {CHECKOUT} app={NEW_IMAGE}")

    check(said, shop, OTHER_IMAGE)
    assert shop.look(CHECKOUT) == as_it_was


@pytest.fixture(scope="module")
def corner(stage):
    """A place of Argo CD's for what need not be tried with every tool."""
    return place_of(stage, ARGOCD, "refused-corner")


def test_the_record_can_be_looked_up(corner, stage):
    """The id in the denial is that of a record, which says who tried what."""
    corner.deployed(config_map("recorded"))

    said = corner.alice("""patch configmap/recorded -p '{"data":{"theme":"light"}}'""")

    id_ = record_id(said.denial)
    found = record(stage, id=id_)
    assert (found["user"], found["verdict"], found["reason"]) == ("alice", "Deny", "Drift")
    assert found["drift"] == [{"path": ".data.theme", "before": "dark", "after": "light"}]
    shown = stage.driftgate("audit", "show", id_)
    assert "ConfigMap refused-corner/recorded" in shown
    assert ".data.theme: dark -> light" in shown


def test_a_dry_run_is_refused_and_leaves_no_record(corner, stage):
    """`--dry-run=server` gets the same answer, but for the record."""
    corner.deployed(config_map("rehearsed"))

    said = corner.alice("""patch configmap/rehearsed -p '{"data":{"theme":"light"}}' --dry-run=server""")

    assert said.denial[0].startswith("ConfigMap refused-corner/rehearsed is managed by Argo CD")
    assert "Record" not in said.stderr
    corner.alice("""patch configmap/rehearsed -p '{"data":{"theme":"blue"}}'""")
    record(stage, name="rehearsed")
    assert [r["drift"][0]["after"] for r in records(stage, name="rehearsed")] == ["blue"]


def test_the_value_of_a_secret_is_not_shown(corner, stage):
    """The denial of a write to a Secret names the field, and no value."""
    corner.deployed(secret())

    said = corner.alice("""patch secret/credentials -p '{"stringData":{"password":"hunter2-hunter2"}}'""")

    assert "  .data.password: (hidden) -> (hidden)" in said.denial
    assert "hunter2" not in said.stderr
    assert "hunter2" not in str(record(stage, name="credentials"))


def test_a_stateful_set_is_not_scaled(corner):
    """The parent of any scale is looked at, not only of a Deployment's."""
    stateful = deployment("database", replicas=1)
    stateful |= {"kind": "StatefulSet", "spec": stateful["spec"] | {"serviceName": "database"}}
    corner.deployed(stateful)

    said = corner.alice("scale statefulset/database --replicas=2")

    assert said.denial[0].startswith("StatefulSet refused-corner/database is managed by Argo CD application")
    assert "  .spec.replicas: 1 -> 2" in said.denial


def test_custom_resources_are_guarded_too(corner):
    """A kind that driftgate has never heard of is judged as any other, its scale included."""
    corner.admin("create -f -", WIDGETS)
    eventually(lambda: corner.admin("get widgets"))
    widget = {
        "apiVersion": "example.org/v1",
        "kind": "Widget",
        "metadata": {"name": "left"},
        "spec": {"replicas": 1, "colour": "red"},
    }
    corner.deployed(widget)

    painted = corner.admin("""patch widget/left --type=merge -p '{"spec":{"colour":"blue"}}'""")
    scaled = corner.admin("scale widget/left --replicas=2")
    deleted = corner.admin("delete crd widgets.example.org --wait=false")

    assert painted.denial[:2] == [
        f'Widget refused-corner/left is managed by Argo CD application "checkout"; {CHANGING}',
        "  .spec.colour: red -> blue",
    ]
    assert "  .spec.replicas: 1 -> 2" in scaled.denial
    assert deleted, deleted.stderr


WIDGETS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.example.org"},
    "spec": {
        "group": "example.org",
        "names": {"kind": "Widget", "plural": "widgets", "singular": "widget"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                },
                "subresources": {
                    "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}
                },
            }
        ],
    },
}


def test_what_belongs_to_no_namespace_is_guarded_too(corner):
    """A mark on a cluster-scoped object names the application's namespace, and counts."""
    role = corner.manifest(
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "e2e-viewer"}}
    )
    del role["metadata"]["namespace"]
    corner.reconciler("apply --field-manager=argocd-controller -f -", role)

    said = corner.admin("delete clusterrole/e2e-viewer")

    assert said.denial[0] == f'ClusterRole e2e-viewer is managed by Argo CD application "checkout"; {DELETING}'
    assert corner.reconciler("delete clusterrole/e2e-viewer")


def test_a_namespace_in_git_is_not_deleted(stage, corner):
    """A Namespace that Git manages is refused to an administrator, and free to its reconciler."""
    flux = place_of(stage, FLUX, "refused-namespace")
    namespace = flux.manifest({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "refused-namespace"}})
    del namespace["metadata"]["namespace"]
    assert flux.reconciler("apply --server-side --field-manager=kustomize-controller --force-conflicts -f -", namespace)

    said = flux.admin("delete namespace refused-namespace")

    assert said.denial[0] == f"Namespace refused-namespace is managed by {flux.title('')}; {DELETING}"
    assert flux.reconciler("delete namespace refused-namespace --wait=false")


def test_a_service_in_front_of_marked_pods_is_no_gap(stage):
    """A pipeline's mark names no object: what carries a copy of it is managed, and can't be made by hand."""
    push = place_of(stage, PUSH, "refused-copy")
    copy = push.manifest(config_map("original"))
    copy["metadata"]["name"] = "copy"

    said = push.alice("create -f -", copy)

    assert said.denial[0].endswith(CREATING)
