"""Which GitOps tool manages an object: the marks, and who its reconcilers are."""

import pytest

from webhook.admission import GroupVersionKind
from webhook.managed import ARGOCD, FLUX, PUSH, TOOLS, Identity, is_generated, managed_by, with_settings

DEPLOYMENT = GroupVersionKind(group="apps", version="v1", kind="Deployment")
SERVICE = GroupVersionKind(group="", version="v1", kind="Service")
ROLE = GroupVersionKind(group="rbac.authorization.k8s.io", version="v1", kind="ClusterRole")

TRACKING = "argocd.argoproj.io/tracking-id"
FLUX_MARKS = {"kustomize.toolkit.fluxcd.io/name": "apps", "kustomize.toolkit.fluxcd.io/namespace": "flux-system"}
SOURCE = {"driftgate.dev/source": "https://git.example.org/shop//apps"}


def named(name="web", namespace="shop", **metadata):
    place = {"namespace": namespace} if namespace else {}
    return {"metadata": {"name": name, **place, **metadata}}


def tracked(mark, name="web", namespace="shop"):
    return named(name, namespace, annotations={TRACKING: mark})


def applications(obj, kind=DEPLOYMENT):
    return [(mark.tool.key, mark.application) for mark in managed_by(obj, kind, TOOLS)]


@pytest.mark.parametrize(
    ("obj", "kind", "application"),
    [
        (tracked("shop-prod:apps/Deployment:shop/web"), DEPLOYMENT, "shop-prod"),
        (tracked("team-a_shop-prod:apps/Deployment:shop/web"), DEPLOYMENT, "team-a_shop-prod"),
        (tracked("shop-prod:/Service:shop/web"), SERVICE, "shop-prod"),
        (tracked(":apps/Deployment:shop/web"), DEPLOYMENT, None),
        (tracked("shop-prod:apps/Deployment:shop/other"), DEPLOYMENT, None),
        (tracked("shop-prod:apps/Deployment:other/web"), DEPLOYMENT, None),
        (tracked("shop-prod:apps/StatefulSet:shop/web"), DEPLOYMENT, None),
        (tracked("shop-prod:extensions/Deployment:shop/web"), DEPLOYMENT, None),
        (tracked("shop-prod:apps/Deployment:shop/web:x"), DEPLOYMENT, None),
        (tracked("shop-prod"), DEPLOYMENT, None),
        (tracked(""), DEPLOYMENT, None),
        (tracked(":::"), DEPLOYMENT, None),
        (tracked(7), DEPLOYMENT, None),
        (tracked(None), DEPLOYMENT, None),
        (tracked("a:rbac.authorization.k8s.io/ClusterRole:dest/viewer", "viewer", ""), ROLE, "a"),
        (tracked("a:rbac.authorization.k8s.io/ClusterRole:dest/system:viewer", "system:viewer", ""), ROLE, "a"),
        (tracked("a:rbac.authorization.k8s.io/ClusterRole:dest/viewer", "editor", ""), ROLE, None),
    ],
)
def test_argo_cd_s_mark_has_to_name_this_very_object(obj, kind, application):
    """A copy of a tracking-id manages nothing; cluster-scoped objects carry their application's destination."""
    assert applications(obj, kind) == ([("argocd", application)] if application else [])


@pytest.mark.parametrize(
    ("labels", "application"),
    [
        (FLUX_MARKS, "flux-system/apps"),
        ({"kustomize.toolkit.fluxcd.io/name": "apps"}, None),
        ({**FLUX_MARKS, "kustomize.toolkit.fluxcd.io/name": ""}, None),
        ({}, None),
        (None, None),
        ([], None),
    ],
)
def test_flux_s_mark_is_two_labels(labels, application):
    """Name and namespace of the Kustomization are needed both."""
    assert applications(named(labels=labels)) == ([("flux", application)] if application else [])


@pytest.mark.parametrize(("mark", "is_mark"), [("https://git.example.org/shop//apps", True), (" ", False), (7, False)])
def test_a_pipeline_s_mark_says_where_the_manifest_is(mark, is_mark):
    """The source annotation is a mark unless it is blank."""
    assert bool(applications(named(annotations={"driftgate.dev/source": mark}))) is is_mark


def test_all_valid_marks_count():
    """An object may be claimed by several tools."""
    obj = named(labels=FLUX_MARKS, annotations={TRACKING: "a:apps/Deployment:shop/web", **SOURCE})

    assert [tool for tool, _ in applications(obj)] == ["argocd", "flux", "push"]
    assert str(managed_by(obj, DEPLOYMENT, TOOLS)[0]) == 'Argo CD application "a"'


@pytest.mark.parametrize(
    ("owners", "generated"),
    [
        ([{"kind": "ReplicaSet", "controller": True}], True),
        ([{"kind": "ConfigMap"}, {"kind": "Job", "controller": True}], True),
        ([{"kind": "ConfigMap", "controller": False}], False),
        ([{"kind": "ConfigMap"}], False),
        ([{"kind": "ConfigMap", "controller": "true"}], False),
        ([], False),
        (None, False),
        ("owner", False),
        (["owner"], False),
    ],
)
def test_what_a_controller_owns_is_generated_and_not_managed(owners, generated):
    """Marks leak to ReplicaSets and EndpointSlices; a controller that owns them gives them away."""
    obj = named(labels=FLUX_MARKS, ownerReferences=owners)

    assert is_generated(obj) is generated
    assert bool(applications(obj)) is not generated


@pytest.mark.parametrize("obj", [None, {}, {"metadata": None}, {"metadata": []}, {"metadata": {}}])
def test_what_has_no_metadata_is_nobody_s(obj):
    """There may be no object at all."""
    assert managed_by(obj, DEPLOYMENT, TOOLS) == ()


ACCOUNT = "system:serviceaccount:argocd:argocd-application-controller"


@pytest.mark.parametrize(
    ("identity", "user", "is_user"),
    [
        (Identity(name=ACCOUNT), (ACCOUNT, "u1", []), True),
        (Identity(name=ACCOUNT), (ACCOUNT, "", []), False),
        (Identity(name=ACCOUNT, impersonated=True), (ACCOUNT, "", []), True),
        (Identity(name=ACCOUNT), (ACCOUNT + "2", "u1", []), False),
        (Identity(name="ci"), ("ci", "", []), True),
        (Identity(name="group:ci"), ("anybody", "", ["x", "ci"]), True),
        (Identity(name="group:ci"), ("ci", "u1", ["x"]), False),
        (Identity(name="group:ci"), ("group:ci", "u1", []), False),
    ],
)
def test_a_service_account_is_known_by_its_own_token(identity, user, is_user):
    """`kubectl --as=` carries no uid: only who is marked as impersonated counts without."""
    assert identity.is_user(*user) is is_user


def test_a_configuration_adds_to_what_a_tool_settles():
    """What a tool knows of itself stays."""
    tool = with_settings(PUSH, reconcilers=["ci"], impersonated=["system:serviceaccount:a:b"], field_managers=["helm"])

    assert tool.reconcilers == (
        Identity(name="ci"),
        Identity(name="system:serviceaccount:a:b", impersonated=True),
    )
    assert tool.field_managers == PUSH.field_managers | {"helm"}
    assert [t.key for t in (ARGOCD, FLUX, PUSH)] == ["argocd", "flux", "push"]
