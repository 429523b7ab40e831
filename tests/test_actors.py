"""Who writes, as far as `userInfo` can tell."""

from dataclasses import replace

import pytest

from webhook.actors import Actor, actor_of, is_exempt, is_system
from webhook.admission import UserInfo
from webhook.managed import ARGOCD, FLUX, Identity, ManagedBy
from webhook.policy import NODES, Policy

ARGO = "system:serviceaccount:argocd:argocd-application-controller"
KUSTOMIZE = "system:serviceaccount:flux-system:kustomize-controller"
DEPLOYER = "system:serviceaccount:ci:deployer"
DASHBOARD = "system:serviceaccount:kubernetes-dashboard:kubernetes-dashboard"
OURS = "system:serviceaccount:driftgate:driftgate-controller"
BUILT_IN = "system:serviceaccount:kube-system:deployment-controller"

POLICY = Policy(people=frozenset({DASHBOARD}))
BY_ARGO = (ManagedBy(tool=ARGOCD, application="shop"),)
BY_BOTH = (*BY_ARGO, ManagedBy(tool=FLUX, application="a/b"))


@pytest.mark.parametrize(
    ("username", "uid", "groups", "managed", "actor"),
    [
        ("alice", "", (), BY_ARGO, Actor.PERSON),
        ("alice", "7", (), BY_ARGO, Actor.PERSON),
        ("", "", (), BY_ARGO, Actor.PERSON),
        (ARGO, "u", (), BY_ARGO, Actor.RECONCILER),
        (ARGO, "", (), BY_ARGO, Actor.PERSON),
        (ARGO, "u", (), (), Actor.CONTROLLER),
        (KUSTOMIZE, "u", (), BY_ARGO, Actor.CONTROLLER),
        (KUSTOMIZE, "u", (), BY_BOTH, Actor.RECONCILER),
        (DEPLOYER, "u", (), BY_ARGO, Actor.CONTROLLER),
        (DEPLOYER, "", (), BY_ARGO, Actor.PERSON),
        (DASHBOARD, "u", (), BY_ARGO, Actor.PERSON),
        (OURS, "u", (), BY_ARGO, Actor.DRIFTGATE),
        (OURS, "", (), BY_ARGO, Actor.PERSON),
        (BUILT_IN, "u", (), BY_ARGO, Actor.SYSTEM),
        (BUILT_IN, "", (), BY_ARGO, Actor.PERSON),
        ("system:serviceaccount:kube-system:mine", "u", (), BY_ARGO, Actor.CONTROLLER),
        ("system:apiserver", "", (), BY_ARGO, Actor.SYSTEM),
        ("system:node:n1", "", (NODES,), BY_ARGO, Actor.SYSTEM),
        ("system:node:n1", "", (), BY_ARGO, Actor.PERSON),
        ("alice", "", (NODES,), BY_ARGO, Actor.PERSON),
        ("system:masters", "", (), BY_ARGO, Actor.PERSON),
    ],
)
def test_who_writes_is_told_by_identity(username, uid, groups, managed, actor):
    """An impersonated service account counts as the person behind it, whoever that is."""
    assert actor_of(UserInfo(username=username, uid=uid, groups=groups), managed, POLICY) is actor


def test_the_cluster_itself_is_known_without_any_object():
    """Nodes need their group as well as their name."""
    assert is_system(UserInfo(username="system:kube-scheduler"))
    assert not is_system(UserInfo(username="system:node:n1"))


@pytest.mark.parametrize(
    ("user", "exempt"),
    [
        (UserInfo(username="backup"), True),
        (UserInfo(username="x", groups=("operators",)), True),
        (UserInfo(username=DEPLOYER, uid="u"), True),
        (UserInfo(username=DEPLOYER), False),
        (UserInfo(username="alice", groups=("backup",)), False),
    ],
)
def test_the_exempt_are_those_that_the_configuration_names(user, exempt):
    """Users, groups, and service accounts with their own token."""
    names = ("backup", "group:operators", DEPLOYER)

    assert is_exempt(user, replace(POLICY, exempt=tuple(Identity(name=name) for name in names))) is exempt
    assert not is_exempt(user, POLICY)
