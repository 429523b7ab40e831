"""The real GitOps tools work here, without driftgate in front: what they do by themselves, and how they sign it."""

import pytest

from tests.e2e.conftest import unavailable
from tests.e2e.gitops import ArgoCD, Flux, Repository, why_unavailable
from tests.e2e.terminal import eventually
from webhook.demo.control_plane import ControlPlane
from webhook.demo.sample import config_map, deployment

pytestmark = [pytest.mark.e2e, pytest.mark.gitops]


@pytest.fixture(scope="module")
def control_plane(binaries):
    """A control plane of its own: the one of all tests has a gate in front."""
    if reason := why_unavailable():
        unavailable(reason)
    with ControlPlane(binaries) as running:
        yield running


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return Repository(tmp_path_factory.mktemp("gitops") / "deploy")


@pytest.fixture(scope="module")
def flux(control_plane, repository, tmp_path_factory):
    with Flux(control_plane, tmp_path_factory.mktemp("flux"), repository) as running:
        yield running


@pytest.fixture(scope="module")
def argocd(control_plane, tmp_path_factory):
    with ArgoCD(control_plane, tmp_path_factory.mktemp("argocd")) as running:
        yield running


def namespace(control_plane, name):
    control_plane.kubectl("create", "namespace", name, check=True)
    return name


def scale(control_plane, where, replicas):
    control_plane.kubectl("scale", "deployment/checkout", "-n", where, f"--replicas={replicas}", check=True)


def managers(found, operation):
    return [entry["manager"] for entry in found["metadata"]["managedFields"] if entry["operation"] == operation]


def test_flux_deploys_updates_and_undoes(control_plane, flux, repository):
    """Flux applies a commit server-side with its marks, follows the next commit, and undoes a scale when asked."""
    bank = namespace(control_plane, "bank")
    repository.commit({"bank/checkout.yaml": deployment(), "bank/settings.yaml": config_map()})
    flux.publish()
    flux.kustomization("bank", "bank", bank)

    flux.reconcile("bank")

    for resource, name in (("deployment", "checkout"), ("configmap", "settings")):
        found = flux.get(resource, name, bank)
        assert found["metadata"]["labels"]["kustomize.toolkit.fluxcd.io/name"] == "bank"
        assert found["metadata"]["labels"]["kustomize.toolkit.fluxcd.io/namespace"] == "flux-system"
        assert managers(found, "Apply") == ["kustomize-controller"]

    repository.commit({"bank/checkout.yaml": deployment(replicas=2)})
    flux.publish()
    flux.reconcile("bank")

    assert flux.get("deployment", "checkout", bank)["spec"]["replicas"] == 2

    scale(control_plane, bank, 5)
    flux.reconcile("bank")

    assert flux.get("deployment", "checkout", bank)["spec"]["replicas"] == 2


def test_argo_cd_deploys_updates_and_heals(control_plane, argocd, repository):
    """Argo CD applies a commit with its mark, follows the next one, and undoes a scale within seconds by itself."""
    shop = namespace(control_plane, "shop")
    commit = repository.commit({"shop/checkout.yaml": deployment(), "shop/settings.yaml": config_map()})
    argocd.application("shop", repository, "shop", shop)

    argocd.synced("shop", commit)

    found = argocd.get("deployment", "checkout", shop)
    tracking_id = found["metadata"]["annotations"]["argocd.argoproj.io/tracking-id"]
    assert tracking_id == "shop:apps/Deployment:shop/checkout"
    assert "argocd-controller" in managers(found, "Update")

    commit = repository.commit({"shop/checkout.yaml": deployment(replicas=2)})
    argocd.refresh("shop")
    argocd.synced("shop", commit)

    assert argocd.get("deployment", "checkout", shop)["spec"]["replicas"] == 2

    scale(control_plane, shop, 5)

    eventually(lambda: argocd.get("deployment", "checkout", shop)["spec"]["replicas"] == 2)
