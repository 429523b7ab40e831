"""The real Argo CD and the real Flux behind the gate: nothing of theirs is refused, and everybody else's drift is.

Everything happens twice: with the registration as it is generated, where most of what the tools write never reaches
driftgate; and with its matchConditions and selectors taken out, where every write in the cluster is decided.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import unavailable
from tests.e2e.gitops import ArgoCD, Flux, Repository, why_unavailable
from tests.e2e.gitops.repository import Manifest
from tests.e2e.terminal import ASK, REASON, Place, place_of
from webhook.demo.control_plane import ControlPlane
from webhook.demo.sample import ARGOCD, FLUX, config_map, deployment
from webhook.demo.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.gitops]

NEW_IMAGE = "registry.example.com/shop/checkout:1.4.1"
DRIFTER = "drifter"  # what an exempt user writes is never looked at: how drift comes about behind a gate
TENANT = "system:serviceaccount:flux-system:deployer"
SETTINGS = {"exempt": [DRIFTER], "tools": {"flux": {"impersonated": [TENANT]}}}
DRIFTS = (
    "scale deployment/checkout --replicas=5",
    f"set image deployment/checkout app={NEW_IMAGE}-hotfix",
    "set env deployment/checkout DEBUG=1",
    "label deployment/checkout tier=gold",
    "annotate deployment/checkout owner=alice",
    "label configmap/settings tier=gold",
    "delete configmap/settings",
    "delete deployment/checkout",
)


@dataclass(kw_only=True)
class World:
    """A cluster in which both tools deploy from one repository, and a gate stands."""

    stage: Stage
    flux: Flux
    argocd: ArgoCD
    repository: Repository
    everything_is_judged: bool
    read: int = field(default=0)  # lines of driftgate's log

    @property
    def control_plane(self) -> ControlPlane:
        return self.stage.cluster

    def decisions(self) -> Iterator[dict[str, object]]:
        """Yield what was decided since the last time that this was asked."""
        lines = (self.stage.directory / "serve.log").read_text().splitlines()
        new, self.read = lines[self.read :], len(lines)
        for line in new:
            entry = json.loads(line)
            if entry["event"] == "review.decided":
                yield entry

    def refused(self) -> list[dict[str, object]]:
        """Return what the tools were refused since the last time that decisions were asked for."""
        tools = {self.flux.identity, self.argocd.identity, TENANT}
        decided = [d for d in self.decisions() if d["user"] in tools]
        assert decided or not self.everything_is_judged, "not one write of a tool was judged"
        return [d for d in decided if d["verdict"] == "Deny"]

    def drift(self, command: str, namespace: str) -> None:
        """Have drift written behind the gate's back."""
        drifter = self.control_plane.kubeconfig(DRIFTER, ["system:masters"])
        verb, *rest = command.split()
        self.control_plane.kubectl(verb, "-n", namespace, *rest, config=drifter, check=True)


def judge_everything(stage):
    """Take out of the registration whatever keeps a write away from driftgate."""
    manifests = list(yaml.safe_load_all(stage.registration_file.read_text()))
    for manifest in manifests:
        for entry in manifest["webhooks"]:
            entry.pop("matchConditions", None)
            entry.pop("objectSelector", None)
    text = yaml.safe_dump_all(manifests)
    stage.cluster.kubectl("replace", "-f", "-", input=text, check=True)


@pytest.fixture(scope="module", params=["as registered", "every write judged"])
def world(request, binaries, tmp_path_factory):
    if reason := why_unavailable():
        unavailable(reason)
    if binaries.missing:
        unavailable(f"the control plane has no {', '.join(binaries.missing)}: run `make control-plane`")
    folder = tmp_path_factory.mktemp("gate")
    repository = Repository(folder / "deploy")
    with (
        ControlPlane(binaries) as control_plane,
        Stage(control_plane, folder / "stage", settings=SETTINGS) as stage,
        Flux(control_plane, folder / "flux", repository) as flux,
        ArgoCD(control_plane, folder / "argocd") as argocd,
    ):
        everything = request.param == "every write judged"
        if everything:
            judge_everything(stage)
        yield World(stage=stage, flux=flux, argocd=argocd, repository=repository, everything_is_judged=everything)
    log = (folder / "stage" / "serve.log").read_text()
    assert "Traceback" not in log
    assert "review.failed" not in log


class Way:
    """One way to deploy a folder of the repository into a namespace of the same name."""

    def __init__(self, world: World, name: str, **how: Any) -> None:
        self.world = world
        self.name = name
        self.how = how

    def commit(self, **files: Manifest | None) -> str:
        """Commit files of the folder."""
        return self.world.repository.commit({f"{self.name}/{file}.yaml": content for file, content in files.items()})


class ByFlux(Way):
    applied = FLUX

    def create(self) -> None:
        self.world.flux.publish()
        self.world.flux.kustomization(self.name, self.name, self.name, **self.how)
        self.world.flux.reconcile(self.name)

    def follow(self) -> None:
        self.world.flux.publish()
        self.world.flux.reconcile(self.name)

    def heal(self) -> None:
        self.world.flux.reconcile(self.name)

    def remove(self) -> None:
        self.world.flux.remove(self.name)


class ByArgoCD(Way):
    applied = ARGOCD

    def create(self) -> None:
        self.world.argocd.application(self.name, self.world.repository, self.name, self.name, **self.how)
        self.world.argocd.synced(self.name, self.world.repository.head)

    def follow(self) -> None:
        self.world.argocd.refresh(self.name)
        self.world.argocd.synced(self.name, self.world.repository.head)

    def heal(self) -> None:
        """It does so by itself."""

    def remove(self) -> None:
        self.world.argocd.remove(self.name)


WAYS: dict[str, tuple[type[ByFlux | ByArgoCD], dict[str, Any]]] = {
    "flux": (ByFlux, {}),
    "flux-tenant": (ByFlux, {"service_account": "deployer"}),
    "argocd": (ByArgoCD, {}),
    "argocd-server-side": (ByArgoCD, {"server_side": True}),
    "argocd-replace": (ByArgoCD, {"replace": True}),
}


def way_of(world, name, prefix):
    kind, how = WAYS[name]
    return kind(world, f"{prefix}-{name}", **how)


def soon(world, what, look, seconds=60.0):
    """Wait for something that a tool does by itself."""
    return world.argocd.wait(what, look, seconds=seconds)


def replicas(place):
    return place.get("deployment/checkout")["spec"]["replicas"]


@pytest.mark.parametrize("name", WAYS)
def test_a_life_behind_the_gate(world, name):
    """An application is created, guarded, updated, healed, pruned and deleted, and its tool is never refused."""
    way = way_of(world, name, "life")
    place = place_of(world.stage, way.applied, way.name)
    if name == "flux-tenant":
        let_the_tenant_in(world, way.name)
    list(world.decisions())

    way.commit(checkout=deployment(), settings=config_map(), extra=config_map("extra"))
    way.create()
    assert replicas(place) == 3
    everybody_else_is_refused(place)

    way.commit(checkout=deployment(replicas=2, image=NEW_IMAGE))
    way.follow()
    assert replicas(place) == 2

    world.drift("scale deployment/checkout --replicas=7", way.name)
    way.heal()
    soon(world, f"{name} healed the scale", lambda: replicas(place) == 2)
    world.drift("delete configmap settings", way.name)
    way.heal()
    soon(world, f"{name} created again", lambda: place.get("configmap/settings"))

    way.commit(extra=None)
    way.follow()
    soon(world, f"{name} pruned", lambda: place.get("configmap/extra") is None)

    way.remove()
    soon(world, f"{name} is gone", lambda: place.get("deployment/checkout") is None)
    assert place.get("configmap/settings") is None
    assert world.refused() == []


def let_the_tenant_in(world, namespace):
    """Give the tenant's account what it takes in its own namespace."""
    run = world.control_plane.kubectl
    run("create", "serviceaccount", "deployer", "-n", "flux-system", check=True)
    account = "--serviceaccount=flux-system:deployer"
    run("create", "rolebinding", "deployer", "--clusterrole=admin", account, "-n", namespace, check=True)


def everybody_else_is_refused(place: Place) -> None:
    """A person's drift is refused and changes nothing, also where the tool itself would not notice it."""
    before = place.look("deployment/checkout"), place.look("configmap/settings")
    for command in DRIFTS:
        said = place.alice(command)
        assert said.denial, f"{command}: {said.stdout}{said.stderr}"
    assert (place.look("deployment/checkout"), place.look("configmap/settings")) == before


def test_flux_replaces_by_force_what_cannot_be_changed(world):
    """With `force` Flux deletes and creates a Deployment whose selector changes."""
    way = ByFlux(world, "flux-force", force=True)
    place = place_of(world.stage, FLUX, "flux-force")
    list(world.decisions())
    way.commit(checkout=deployment())
    way.create()
    before = place.get("deployment/checkout")["metadata"]["uid"]

    changed = deployment()
    changed["spec"]["selector"]["matchLabels"]["track"] = "stable"
    changed["spec"]["template"]["metadata"]["labels"]["track"] = "stable"
    way.commit(checkout=changed)
    way.follow()

    assert place.get("deployment/checkout")["metadata"]["uid"] != before
    assert world.refused() == []


def hook(name, phase):
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "annotations": {
                "argocd.argoproj.io/hook": phase,
                "argocd.argoproj.io/hook-delete-policy": "BeforeHookCreation",
            },
        },
        "spec": {
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{"name": "migrate", "image": "registry.example.com/shop/migrate:1"}],
                }
            }
        },
    }


def test_hooks_run_on_every_sync(world):
    """Argo CD creates hooks, waits for them, and deletes those of the sync before."""
    way = ByArgoCD(world, "argocd-hooks")
    place_of(world.stage, ARGOCD, "argocd-hooks")
    list(world.decisions())
    way.commit(checkout=deployment(), before=hook("before", "PreSync"), after=hook("after", "PostSync"))
    way.create()
    first = world.argocd.get("job", "before", "argocd-hooks")["metadata"]["uid"]

    way.commit(checkout=deployment(replicas=2))
    way.follow()

    assert world.argocd.get("job", "before", "argocd-hooks")["metadata"]["uid"] != first
    way.remove()
    assert world.refused() == []


def test_an_application_of_applications(world):
    """Argo CD deploys an Application that deploys; syncs by hand and refreshes pass, a person's edit does not."""
    list(world.decisions())
    child = world.argocd.manifest("child", world.repository, "child", "argocd-child", options=["CreateNamespace=true"])
    world.repository.commit({"parent/child.yaml": child, "child/settings.yaml": config_map()})
    world.argocd.application("parent", world.repository, "parent", "argocd")
    world.argocd.synced("parent", world.repository.head)
    world.argocd.synced("child", world.repository.head)
    assert world.argocd.get("configmap", "settings", "argocd-child")

    edit = "patch applications.argoproj.io child --type=merge -p"
    said = world.control_plane.kubectl(*edit.split(), '{"spec": {"project": "other"}}', "-n", "argocd")
    assert "denied the request: Application argocd/child is managed by Argo CD" in said.stderr

    world.repository.commit({"child/settings.yaml": config_map() | {"data": {"theme": "light"}}})
    world.argocd.refresh("child")
    world.argocd.sync("child")
    world.argocd.synced("child", world.repository.head)
    assert world.argocd.get("configmap", "settings", "argocd-child")["data"] == {"theme": "light"}

    world.argocd.remove("parent")
    soon(world, "the child is gone", lambda: world.argocd.get("applications.argoproj.io", "child") is None)
    assert world.argocd.get("configmap", "settings", "argocd-child") is None
    assert world.refused() == []


def test_a_kustomization_of_kustomizations(world):
    """Flux deploys a Kustomization that deploys; asking for a reconciliation passes, a person's edit does not."""
    place = place_of(world.stage, FLUX, "flux-child")
    list(world.decisions())
    child = {
        "apiVersion": "kustomize.toolkit.fluxcd.io/v1",
        "kind": "Kustomization",
        "metadata": {"name": "flux-child", "namespace": "flux-system"},
        "spec": {
            "sourceRef": {"kind": "GitRepository", "name": "deploy"},
            "path": "./flux-child",
            "targetNamespace": "flux-child",
            "interval": "1h",
            "prune": True,
        },
    }
    world.repository.commit({"flux-parent/child.yaml": child, "flux-child/settings.yaml": config_map()})
    world.flux.publish()
    world.flux.kustomization("flux-parent", "flux-parent")
    world.flux.reconcile("flux-parent")
    world.flux.reconcile("flux-child")
    assert place.get("configmap/settings")

    edit = "patch kustomizations.kustomize.toolkit.fluxcd.io flux-child --type=merge -p"
    said = world.control_plane.kubectl(*edit.split(), '{"spec": {"suspend": true}}', "-n", "flux-system")
    assert "denied the request: Kustomization flux-system/flux-child is managed by Flux" in said.stderr

    world.flux.remove("flux-parent")
    soon(world, "the child is gone", lambda: place.get("configmap/settings") is None)
    assert world.refused() == []


@pytest.mark.parametrize("name", ["flux", "argocd"])
def test_a_fix_behind_broken_glass_holds_until_the_window_closes(world, name):
    """A scale by someone with the right survives the tool while the window is open, and is undone afterwards."""
    way = way_of(world, name, "glass")
    place = place_of(world.stage, way.applied, way.name)
    way.commit(checkout=deployment())
    way.create()

    assert place.bob(f'annotate deployment/checkout {ASK}="{REASON}"')
    said = place.bob("scale deployment/checkout --replicas=5")
    assert said, said.stderr
    message = what_the_tool_says(world, way)

    assert REASON in message
    assert "bob" in message
    assert replicas(place) == 5

    closed = place.bob(f"annotate deployment/checkout {ASK}-")
    assert closed, closed.stderr
    soon(world, "the stamp is gone", lambda: place.is_free("deployment/checkout"))
    way.heal()
    soon(world, f"{name} undid the scale", lambda: replicas(place) == 3, seconds=120)


def what_the_tool_says(world, way):
    """Return what the tool tells everybody about the write that it was refused."""
    if isinstance(way, ByFlux):
        return world.flux.reconcile(way.name, fails=True)["message"]

    def refused():
        message = world.argocd.brief(way.name)["operation"]["message"] or ""
        return message if REASON in message else None

    return soon(world, "Argo CD was refused", refused)
