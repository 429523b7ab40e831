"""While driftgate is down and still registered: who is refused, who passes, and what is left when it is back."""

import pytest

from tests.e2e.terminal import eventually, issue, place_of
from webhook.demo.sample import ARGOCD, FLUX, config_map, deployment

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def shop(stage):
    """What Flux applied before, an open window with a change in it, and something that nobody manages."""
    place = place_of(stage, FLUX, "down")
    place.deployed(config_map(), config_map("held"), deployment(replicas=1))
    window = place.opened(place.bob, "configmap/held")
    assert place.bob("""patch configmap/held -p '{"data":{"theme":"light"}}'""")
    issue(stage, window)
    assert place.admin("create configmap scratch")
    return place


@pytest.fixture(scope="module")
def down(stage, shop):
    """Take driftgate's processes away for the tests of this file, and give them back."""
    stage.halt()
    yield shop
    stage.start()
    eventually(lambda: shop.alice("label configmap/settings a=b").denial)


def test_it_comes_back_as_it_was(stage):
    """Stopped and started, it refuses as before, and knows the windows that were open."""
    place = place_of(stage, ARGOCD, "down-and-up")
    place.deployed(config_map("held"))
    window = place.opened(place.bob, "configmap/held")
    assert place.bob("""patch configmap/held -p '{"data":{"theme":"light"}}'""")
    stage.halt()
    stage.start()

    assert place.deploy(config_map("held")).denial[0].startswith("ConfigMap down-and-up/held is held by break-glass")
    assert "| `.data.theme` | `dark` | `light` |" in issue(stage, window)
    assert place.bob("annotate configmap/held driftgate.dev/break-glass-")
    eventually(lambda: place.is_free("configmap/held"))
    eventually(lambda: "Break-glass ended: the ask was removed." in issue(stage, window))


def test_a_person_is_refused(down):
    """`Fail`: what people write to managed objects waits until driftgate is back, and they read whose webhook it is."""
    before = down.look("configmap/settings")

    for command in ("label configmap/settings a=b", "delete configmap/settings"):
        said = down.alice(command)
        assert 'failed calling webhook "people.driftgate.dev"' in said.stderr
    assert not down.admin("set image deployment/checkout app=other:1")
    assert not down.alice("create -f -", down.manifest(config_map("by-hand")))
    assert down.look("configmap/settings") == before


def test_the_hold_holds(down):
    """`Fail`: the reconciler does not undo what an open window holds."""
    said = down.deploy(config_map("held"))

    assert 'failed calling webhook "held.driftgate.dev"' in said.stderr
    assert down.get("configmap/held")["data"] == {"theme": "light"}


def test_gitops_goes_on(down):
    """The reconciler's other writes pass, without a call."""
    said = down.deploy({**config_map(), "data": {"theme": "blue"}})

    assert said, said.stderr
    down.deployed(config_map())


def test_controllers_go_on(down):
    """`Ignore`: another service account's write passes, also one that would be refused."""
    said = down.robot("annotate configmap/settings operator.example.org/seen=yes")

    assert said, said.stderr


def test_the_cluster_goes_on(complete_control_plane, down):
    """Pods go and come."""
    assert down.alice("rollout status deployment/checkout --timeout=60s")
    gone = down.admin("get pods -l app=checkout -o jsonpath={.items[0].metadata.name}").stdout

    assert down.alice(f"delete pod {gone}")

    eventually(lambda: down.admin("get deployment checkout -o jsonpath={.status.readyReplicas}").stdout == "1")
    assert down.admin("get pods -l app=checkout -o jsonpath={.items[0].metadata.name}").stdout != gone


def test_what_nobody_manages_goes_on(down):
    """No call, no failure."""
    assert down.alice("label configmap/scratch a=b --overwrite")
    assert down.alice("create deployment free --image=web")
    assert down.alice("delete deployment free")


def test_a_scale_passes(down):
    """`Ignore`: nothing shows whose a scale is, and an application must be able to grow."""
    said = down.alice("scale deployment/checkout --replicas=2")

    assert said, said.stderr
    down.deployed(deployment(replicas=1))


def test_it_can_be_switched_off(stage, down):
    """The one command works without driftgate; registered again, people are refused again."""
    stage.switch_off()
    try:
        assert eventually(lambda: down.alice("label configmap/settings team=blue --overwrite"))
    finally:
        stage.cluster.kubectl("apply", "-f", str(stage.registration_file), check=True)
    eventually(lambda: not down.alice("label configmap/settings team=red --overwrite"))
    down.deployed(config_map())
