"""What goes on as if driftgate were not there: GitOps, the cluster's own controllers, and what nobody manages."""

import json

import pytest

from tests.e2e.terminal import eventually, place_of
from webhook.demo.sample import ARGOCD, FLUX, config_map, deployment

pytestmark = pytest.mark.e2e

NEW_IMAGE = "registry.example.com/shop/checkout:1.5.0"


@pytest.fixture(scope="module", autouse=True)
def cron_job(stage, request):
    """A CronJob as Argo CD applies it, first of all: it may take a minute until it is time for its first Job."""
    place = place_of(stage, ARGOCD, "passes-cron")
    pod = deployment("nightly")["spec"]["template"]
    pod["spec"]["restartPolicy"] = "Never"
    pod["metadata"]["annotations"] = {"kwok": "completes"}
    spec = {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": pod}}}
    place.deployed({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "nightly"}, "spec": spec})
    return place


@pytest.fixture(scope="module")
def shop(place):
    """A Deployment of one pod, as the tool applies it."""
    place.deployed(deployment(replicas=1))
    return place


@pytest.fixture(scope="module")
def corner(stage):
    """A place of Argo CD's for what need not be tried with every tool."""
    return place_of(stage, ARGOCD, "passes-corner")


def fine(said):
    """Assert that a command succeeded and driftgate had nothing to say about it."""
    assert said, said.stderr
    assert "driftgate" not in said.stderr
    return said


def pods(place, app):
    """Return the pods of an app that are there to stay."""
    items = json.loads(place.admin(f"get pods -l app={app} -o json").stdout)["items"]
    return [item for item in items if "deletionTimestamp" not in item["metadata"]]


def running(place, app):
    return [p["metadata"]["name"] for p in pods(place, app) if p["status"].get("phase") == "Running"]


@pytest.mark.parametrize(
    "command",
    ["apply -f -", "apply --server-side -f -", "apply --server-side --force-conflicts -f -"],
    ids=["apply", "server-side", "forced"],
)
@pytest.mark.parametrize("kind", ["Deployment", "ConfigMap"])
def test_the_same_manifest_passes(place, request, kind, command):
    """Whoever applies what Git says changes nothing that counts, whatever kubectl does to annotations and owners."""
    name = f"again-{request.node.callspec.id.rpartition('-')[2]}"
    manifest = deployment(name, replicas=1) if kind == "Deployment" else config_map(name)
    place.deployed(manifest)
    if kind == "Deployment" and not place.stage.cluster.binaries.missing:
        assert place.admin(f"rollout status deployment/{name} --timeout=60s")
    before = place.look(f"{kind}/{name}")

    said = place.alice(command, place.manifest(manifest))
    again = place.alice(command, place.manifest(manifest))

    assert said, said.stderr
    assert again, again.stderr
    after = place.look(f"{kind}/{name}")
    assert [after.get(key) for key in ("spec", "data")] == [before.get(key) for key in ("spec", "data")]


@pytest.mark.parametrize("kind", ["Deployment", "ConfigMap"])
def test_the_same_manifest_replaces(place, kind):
    """`kubectl replace` with what Git says passes where nothing else is lost: the tool's last-applied annotation is."""
    manifest = deployment("replaced", replicas=1) if kind == "Deployment" else config_map("replaced")
    place.deployed(manifest)
    if kind == "Deployment" and not place.stage.cluster.binaries.missing:
        assert place.admin("rollout status deployment/replaced --timeout=60s")

    said = place.alice("replace -f -", place.manifest(manifest))

    if "--server-side" in place.applied.flags:
        assert said, said.stderr
    else:
        path = '.metadata.annotations["kubectl.kubernetes.io/last-applied-configuration"]'
        assert f"  {path}: (hidden) -> (absent)" in said.denial


def test_the_reconciler_writes_as_it_likes(place):
    """Update, dry run, replace, a change undone, prune: none of it is any business of ours."""
    what = config_map("own")
    new = {**what, "data": {"theme": "light"}}
    place.deployed(what)

    fine(place.deploy(new, flags="--dry-run=server"))
    fine(place.deploy(new))
    assert place.look("configmap/own")["data"] == {"theme": "light"}
    fine(place.reconciler("replace -f -", place.manifest(what)))
    fine(place.reconciler("""patch configmap/own --type=merge -p '{"data":{"theme":"blue"}}'"""))
    fine(place.reconciler("label configmap/own seen=yes"))
    fine(place.deploy(what))
    assert place.look("configmap/own")["data"] == {"theme": "dark"}
    fine(place.reconciler("delete configmap/own"))
    fine(place.deploy(what))
    fine(place.reconciler("delete configmap/own --dry-run=server"))
    fine(place.reconciler(f"delete --raw /api/v1/namespaces/{place.namespace}/configmaps"))
    assert place.look("configmap/own") is None


def test_a_roll_out_ends(complete_control_plane, place):
    """The reconciler's Deployment comes to N of N, and so does its next version; what a person restarts, too."""
    place.deployed(deployment("rolls", replicas=2))
    fine(place.alice("rollout status deployment/rolls --timeout=60s"))
    first = running(place, "rolls")
    assert len(first) == 2

    place.deployed(deployment("rolls", replicas=2, image=NEW_IMAGE))
    fine(place.alice("rollout status deployment/rolls --timeout=60s"))
    second = eventually(lambda: len(now := running(place, "rolls")) == 2 and now)
    assert not set(first) & set(second)

    fine(place.alice("rollout restart deployment/rolls"))
    fine(place.alice("rollout status deployment/rolls --timeout=60s"))
    third = eventually(lambda: len(now := running(place, "rolls")) == 2 and now)
    assert not set(second) & set(third)


def test_what_a_controller_owns_is_free(complete_control_plane, shop):
    """People delete and evict pods and delete ReplicaSets, and new ones come, whatever marks were copied onto them."""
    gone = eventually(lambda: running(shop, "checkout"))[0]
    fine(shop.alice(f"delete pod {gone}"))
    evicted = eventually(lambda: [p for p in running(shop, "checkout") if p != gone])[0]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": evicted}}
    path = f"/api/v1/namespaces/{shop.namespace}/pods/{evicted}/eviction"
    fine(shop.alice(f"create --raw {path} -f -", eviction))
    eventually(lambda: [p for p in running(shop, "checkout") if p not in {gone, evicted}])
    fine(shop.alice("label pod -l app=checkout seen=yes"))
    before = json.loads(shop.admin("get replicasets -l app=checkout -o json").stdout)["items"]
    fine(shop.alice("delete replicasets -l app=checkout"))
    uids = {item["metadata"]["uid"] for item in before}

    def others():
        items = json.loads(shop.admin("get replicasets -l app=checkout -o json").stdout)["items"]
        return [item for item in items if item["metadata"]["uid"] not in uids]

    eventually(others)


@pytest.mark.parametrize(
    "command",
    ["exec POD -- true", "logs POD", "port-forward pod/POD :8080", "attach POD", "cp /dev/null POD:/tmp/x"],
    ids=lambda command: command.split()[0],
)
def test_looking_into_a_pod_is_free(complete_control_plane, shop, command):
    """There is no kubelet here, so these fail; but not because of us, and none of them is asked about."""
    pod = eventually(lambda: running(shop, "checkout"))[0]

    said = shop.alice(command.replace("POD", pod))

    assert "driftgate" not in said.stderr + said.stdout


def test_a_debug_container_is_free(complete_control_plane, shop):
    """`kubectl debug` adds a container to a pod, not to what Git manages."""
    pod = eventually(lambda: running(shop, "checkout"))[0]

    fine(shop.admin(f"debug {pod} --image=busybox --attach=false"))

    assert shop.get(f"pod/{pod}")["spec"]["ephemeralContainers"][0]["image"] == "busybox"


@pytest.mark.parametrize("cascade", ["foreground", "background"])
def test_garbage_is_collected(complete_control_plane, place, cascade):
    """What the reconciler deletes goes with all that belongs to it."""
    name = f"goes-in-{cascade}"
    place.deployed(deployment(name, replicas=1))
    eventually(lambda: running(place, name))

    fine(place.reconciler(f"delete deployment/{name} --cascade={cascade}"))

    eventually(lambda: not place.admin(f"get replicasets,pods -l app={name} -o name").stdout)


def test_orphans_stay_and_are_adopted(complete_control_plane, place):
    """Deleted with `--cascade=orphan` and applied again, as Argo CD's Replace does: the same pod goes on running."""
    place.deployed(deployment("orphan", replicas=1))
    pod = eventually(lambda: running(place, "orphan"))[0]

    fine(place.reconciler("delete deployment/orphan --cascade=orphan"))
    eventually(lambda: place.get("deployment/orphan") is None)
    owned = "get replicasets -l app=orphan -o jsonpath={.items[0].metadata.ownerReferences}"
    assert not place.admin(owned).stdout
    place.deployed(deployment("orphan", replicas=1))

    fine(place.alice("rollout status deployment/orphan --timeout=60s"))
    eventually(lambda: place.admin(owned).stdout)
    assert running(place, "orphan") == [pod]


def test_a_job_completes(complete_control_plane, place):
    """The job controller keeps its books on a Job that Git manages."""
    pod = deployment("migrate")["spec"]["template"]
    pod["spec"]["restartPolicy"] = "Never"
    place.deployed(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "migrate"}, "spec": {"template": pod}}
    )

    fine(place.alice("wait --for=condition=complete job/migrate --timeout=60s"))


@pytest.mark.parametrize("declared", [None, 1], ids=["left open", "declared"])
def test_an_autoscaler_scales(complete_control_plane, place, declared):
    """An autoscaler is the cluster's: it scales what leaves replicas open in Git, and also what does not."""
    name = f"scaled-{declared or 'open'}"
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name},
        "spec": {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 4},
    }

    place.deployed(deployment(name, replicas=declared), scaler)

    eventually(lambda: place.get(f"deployment/{name}")["spec"]["replicas"] == 2)
    eventually(lambda: len(running(place, name)) == 2)


def test_a_service_gets_its_endpoints(complete_control_plane, shop):
    """EndpointSlices carry a Service's labels, Flux's marks among them, and are written by the cluster all the same."""
    spec = {"selector": {"app": "checkout"}, "ports": [{"port": 80, "targetPort": 8080}]}
    shop.deployed({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "checkout"}, "spec": spec})

    slices = "get endpointslices -l kubernetes.io/service-name=checkout"
    names = f"{slices} -o jsonpath={{.items[*].endpoints[*].targetRef.name}}"
    before = eventually(lambda: shop.admin(names).stdout)
    fine(shop.alice("delete pod -l app=checkout"))
    eventually(lambda: shop.admin(names).stdout not in {"", before})


def test_what_nobody_manages_is_free(place):
    """Beside an application, people work as ever."""
    fine(place.alice("create deployment scratch --image=web --replicas=1"))
    fine(place.alice("scale deployment/scratch --replicas=2"))
    fine(place.alice("set image deployment/scratch *=web:2"))
    fine(place.alice("set env deployment/scratch A=1"))
    fine(place.alice("label deployment/scratch team=blue"))
    fine(place.alice("annotate deployment/scratch note=hello"))
    fine(place.alice("autoscale deployment/scratch --max=3"))
    fine(place.alice("delete deployment/scratch hpa/scratch"))
    fine(place.alice("create secret generic scratch --from-literal=a=b"))
    fine(place.alice("delete secrets --all"))
    fine(place.robot("create configmap by-robot"))
    fine(place.robot("delete configmap by-robot"))


def test_asking_where_no_glass_is_in_the_way_says_so(corner):
    """Break-glass on an object that nobody manages opens nothing, and is told so."""
    corner.alice("create configmap nobody-s")

    said = corner.alice('annotate configmap/nobody-s driftgate.dev/break-glass="INC-42 checkout is down"')

    assert said, said.stderr
    assert corner.stamp("configmap/nobody-s") == {"ask": "INC-42 checkout is down"}


def test_a_copied_mark_does_not_count(corner):
    """Argo CD's mark names its object: on another object it is nothing."""
    copy = corner.manifest(config_map("original"))
    copy["metadata"]["name"] = "copy"

    fine(corner.alice("create -f -", copy))
    fine(corner.alice("delete configmap/copy"))


def test_a_namespace_is_deleted_by_its_reconciler(complete_control_plane, stage):
    """With all that Git manages in it, which the namespace controller deletes."""
    place = place_of(stage, FLUX, "passes-namespace")
    place.deployed(deployment(replicas=1), config_map())

    fine(place.reconciler("delete namespace passes-namespace --wait=false"))

    gone = "get namespace passes-namespace --ignore-not-found -o name"
    eventually(lambda: not place.admin(gone).stdout)


def test_a_controller_writes_what_git_leaves_open(place):
    """An operator annotates, labels and adds to what it looks after; only what Git declares is not its to change."""
    place.deployed(deployment("tended", replicas=1))

    fine(place.robot("annotate deployment/tended operator.example.org/seen=yes"))
    fine(place.robot("label deployment/tended operator.example.org/tier=gold"))
    fine(place.robot("""patch deployment/tended --type=merge -p '{"spec":{"minReadySeconds":3}}'"""))

    assert place.get("deployment/tended")["spec"]["minReadySeconds"] == 3


def test_a_status_is_free_and_a_mark_sent_with_it_is_not(place, stage):
    """A controller writes `/status`; annotations that it sends along are judged, for the API server stores them."""
    place.deployed(deployment("reported", replicas=1))
    stage.cluster.kubectl("create", "clusterrole", "e2e-status", "--verb=patch", "--resource=deployments/status")
    binding = f"create rolebinding status --clusterrole=e2e-status --serviceaccount={place.namespace}:robot"
    assert place.admin(binding)
    patch = "patch deployment/reported --subresource=status --type=merge -p"
    eventually(lambda: place.robot(f"""{patch} '{{"status":{{"collisionCount":7}}}}'"""))
    before = place.look("deployment/reported")["metadata"]
    gone = '{"argocd.argoproj.io/tracking-id":null,"driftgate.dev/source":null,"kustomize.toolkit.fluxcd.io/name":null}'

    said = place.robot(f"""{patch} '{{"metadata":{{"annotations":{gone},"labels":{gone}}}}}'""")

    assert place.get("deployment/reported")["status"]["collisionCount"] == 7
    assert place.look("deployment/reported")["metadata"] == before
    if place.applied.tool != "flux":  # labels are not stored this way, so nothing was to be refused
        assert said.denial[0].startswith(f"Deployment {place.namespace}/reported is managed by")


def test_a_cron_job_runs(complete_control_plane, cron_job):
    """A CronJob's Jobs are the cluster's: they come, complete and are nobody's drift; people start one by hand."""
    fine(cron_job.alice("create job by-hand --from=cronjob/nightly"))
    fine(cron_job.alice("wait --for=condition=complete job/by-hand --timeout=60s"))
    fine(cron_job.alice("delete job by-hand"))

    name = eventually(lambda: cron_job.admin("get jobs -o jsonpath={.items[*].metadata.name}").stdout, seconds=90)
    fine(cron_job.alice(f"wait --for=condition=complete job/{name.split()[0]} --timeout=60s"))
