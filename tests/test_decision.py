"""The rules, over AdmissionReviews recorded from a real API server: read the tables as the specification."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests import recordings
from webhook.actors import Actor
from webhook.admission import AdmissionRequest, Object, Operation, Webhook
from webhook.break_glass import ObjectRef
from webhook.decision import RULES, Decision, Reason, Verdict, decide
from webhook.errors import ParentUnknown
from webhook.facts import Facts, facts_of
from webhook.fields import print_path
from webhook.managed import FLUX, with_settings
from webhook.policy import Mode, Policy

KEY = b"k" * 32
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
POLICY = Policy(
    tools=tuple(
        with_settings(
            tool,
            reconcilers=(),
            impersonated=("system:serviceaccount:flux-system:tenant-deployer",) if tool.key == FLUX.key else (),
            field_managers=(),
        )
        for tool in Policy().tools
    )
)

ALLOW, DENY = Verdict.ALLOW, Verdict.DENY
IMAGE = '.spec.template.spec.containers[name="web"].image'
APP_IMAGE = '.spec.template.spec.containers[name="app"].image'
LOG_LEVEL = '.spec.template.spec.containers[name="web"].env[name="LOG_LEVEL"].value'
LAST_APPLIED = '.metadata.annotations["kubectl.kubernetes.io/last-applied-configuration"]'
REPLICAS = ".spec.replicas"
WHOLE = "."

PEOPLE = [
    ("kubectl-edit.csa", DENY, Reason.DRIFT, [REPLICAS]),
    ("kubectl-edit.ssa", DENY, Reason.DRIFT, [REPLICAS]),
    ("kubectl-edit-image.csa", DENY, Reason.DRIFT, [IMAGE, LAST_APPLIED]),
    ("kubectl-edit-configmap.ssa", DENY, Reason.DRIFT, [".data.theme"]),
    ("kubectl-patch-merge.csa", DENY, Reason.DRIFT, [REPLICAS]),
    ("kubectl-patch-strategic.ssa", DENY, Reason.DRIFT, [LOG_LEVEL]),
    ("kubectl-patch-secret.csa", DENY, Reason.DRIFT, [".data.password"]),
    ("kubectl-patch-cr.csa", DENY, Reason.DRIFT, [".spec.colour"]),
    ("kubectl-patch-noop.csa", ALLOW, Reason.NO_DRIFT, []),
    ("kubectl-patch-status-subresource.csa", ALLOW, Reason.NO_DRIFT, []),
    ("kubectl-set-env.csa", DENY, Reason.DRIFT, [LOG_LEVEL]),
    ("kubectl-set-image.ssa", DENY, Reason.DRIFT, [IMAGE]),
    ("real-flux-selfheal-image.1", DENY, Reason.DRIFT, [APP_IMAGE]),
    ("real-argo-extra-env.1", DENY, Reason.DRIFT, ['.spec.template.spec.containers[name="app"].env[name="DEBUG"]']),
    ("kubectl-annotate.csa", DENY, Reason.DRIFT, [".metadata.annotations.team"]),
    ("kubectl-rollout-restart.csa", ALLOW, Reason.NO_DRIFT, []),
    ("kubectl-rollout-restart.ssa", ALLOW, Reason.NO_DRIFT, []),
    ("real-argo-sync-operation.1", ALLOW, Reason.NO_DRIFT, []),
    ("real-flux-reconcile.1", ALLOW, Reason.NOT_MANAGED, []),
    ("kubectl-apply-drifted.csa", DENY, Reason.DRIFT, [REPLICAS, LAST_APPLIED]),
    ("kubectl-apply-server-side-forced.ssa", DENY, Reason.DRIFT, [REPLICAS]),
    ("kubectl-delete.csa", DENY, Reason.DRIFT, [WHOLE]),
    ("kubectl-delete.ssa", DENY, Reason.DRIFT, [WHOLE]),
    ("kubectl-delete-foreground.csa", DENY, Reason.DRIFT, [WHOLE]),
    ("kubectl-delete-pod.1", ALLOW, Reason.NOT_MANAGED, []),
    ("kubectl-delete-pod.2", ALLOW, Reason.NOT_MANAGED, []),
    ("deletecollection-configmaps.csa.1", ALLOW, Reason.NOT_MANAGED, []),
    ("deletecollection-configmaps.csa.2", DENY, Reason.DRIFT, [WHOLE]),
    (
        "kubectl-annotate-remove-tracking.csa",
        DENY,
        Reason.DRIFT,
        ['.metadata.annotations["argocd.argoproj.io/tracking-id"]'],
    ),
    (
        "kubectl-label-remove-tracking.ssa",
        DENY,
        Reason.DRIFT,
        [
            '.metadata.labels["kustomize.toolkit.fluxcd.io/name"]',
            '.metadata.labels["kustomize.toolkit.fluxcd.io/namespace"]',
        ],
    ),
    (
        "kubectl-label-namespace.ssa",
        DENY,
        Reason.DRIFT,
        ['.metadata.labels["pod-security.kubernetes.io/enforce"]'],
    ),
    ("kubectl-exec.1", ALLOW, Reason.IGNORED, []),
    ("kubectl-exec.2", ALLOW, Reason.IGNORED, []),
    ("eviction", ALLOW, Reason.IGNORED, []),
    ("kubectl-create-deployment-unmanaged", ALLOW, Reason.NOT_MANAGED, []),
    ("kubectl-update-configmap-unmanaged", ALLOW, Reason.NOT_MANAGED, []),
]
PROGRAMS = [
    ("ci-set-image.csa", DENY, Reason.DRIFT, [IMAGE]),
    ("controller-deployment-status-update.csa", ALLOW, Reason.SYSTEM, []),
    ("controller-gc-remove-foreground-finalizer.csa", ALLOW, Reason.SYSTEM, []),
    ("controller-endpointslice-create", ALLOW, Reason.NOT_MANAGED, []),
    ("controller-gc-delete-replicaset.csa", ALLOW, Reason.NOT_MANAGED, []),
    ("controller-pod-create.csa", ALLOW, Reason.NOT_MANAGED, []),
    ("controller-replicaset-create.csa", ALLOW, Reason.NOT_MANAGED, []),
    ("controller-replicaset-scale-after-human-scale.ssa", ALLOW, Reason.NOT_MANAGED, []),
    ("real-argo-update.2", ALLOW, Reason.NOT_MANAGED, []),
    ("real-argo-app-of-apps.5", ALLOW, Reason.NOT_MANAGED, []),
    *(
        (name, ALLOW, Reason.RECONCILER, [])
        for name in (
            *("gitops-create-configmap.ssa", "gitops-create-deployment.csa", "gitops-create-deployment.ssa"),
            *("gitops-create-secret.csa", "gitops-create-statefulset.csa", "gitops-delete-configmap.csa"),
            *("gitops-dryrun-deployment.ssa", "gitops-noop-deployment.ssa", "gitops-selfheal-deployment.csa"),
            *("gitops-update-deployment.csa", "gitops-update-deployment.ssa"),
            *("real-argo-app-delete.1", "real-argo-app-of-apps.4", "real-argo-hook.1", "real-argo-hook.5"),
            *("real-argo-prune.1", "real-argo-replace.3", "real-argo-selfheal-scale.7", "real-argo-ssa-sync.3"),
            *("real-argo-update.1", "real-flux-force.3", "real-flux-force.4", "real-flux-force.8"),
            *("real-flux-prune.2", "real-flux-selfheal-scale.10", "real-flux-update.1", "real-flux-update.5"),
            *("real-flux-tenant.8", "real-flux-tenant.9", "real-flux-tenant.10", "real-flux-tenant-update.3"),
        )
    ),
]
SCALES = [
    ("kubectl-scale.csa", recordings.argocd_deployment, DENY, Reason.DRIFT),
    ("admin-scale.csa", recordings.argocd_deployment, DENY, Reason.DRIFT),
    ("kubectl-scale.ssa", recordings.flux_deployment, DENY, Reason.DRIFT),
    ("controller-hpa-scale.csa", recordings.argocd_deployment, ALLOW, Reason.SYSTEM),
]


def decided(
    request: AdmissionRequest, *, policy: Policy = POLICY, parent: Object | None = None, webhook: str = "validate"
) -> tuple[Decision, list[str]]:
    facts = facts_of(request, policy, webhook=Webhook(webhook), key=KEY, now=NOON, parent=parent)
    decision = decide(facts, policy)
    return decision, [print_path(change.path) for change in decision.drift]


@pytest.mark.parametrize(("name", "verdict", "reason", "drift"), PEOPLE + PROGRAMS)
def test_a_recorded_write_gets_its_verdict(name, verdict, reason, drift):
    """A write is denied only where it changes what Git declares."""
    decision, fields = decided(recordings.request(f"{name}.validate"))

    assert (decision.verdict, decision.reason, fields) == (verdict, reason, drift)


@pytest.mark.parametrize(
    ("name", "reason"),
    [(n, r) for n, _, r, _ in PEOPLE + PROGRAMS if (recordings.RECORDED / f"{n}.mutate.json").exists()],
)
def test_mutate_and_validate_decide_the_same(name, reason):
    """Both webhooks see one write before and after the server's own defaults, and agree on it."""
    decision, _ = decided(recordings.request(f"{name}.mutate"), webhook="mutate")

    assert decision.reason is reason


@pytest.mark.parametrize(("name", "parent", "verdict", "reason"), SCALES)
def test_a_scale_is_judged_by_its_parent(name, parent, verdict, reason):
    """A change of replicas through /scale is a change of the parent's replicas."""
    decision, fields = decided(recordings.request(f"{name}.validate"), parent=parent())

    assert (decision.verdict, decision.reason) == (verdict, reason)
    assert fields == ([REPLICAS] if verdict is DENY else [])


def test_a_scale_of_an_unmanaged_object_passes():
    """What nobody manages is free."""
    parent = recordings.argocd_deployment()
    del parent["metadata"]["annotations"]["argocd.argoproj.io/tracking-id"]

    decision, _ = decided(recordings.request("kubectl-scale.csa.validate"), parent=parent)

    assert decision.reason is Reason.NOT_MANAGED


def test_a_scale_back_to_what_git_says_converges():
    """Undoing drift by hand is no drift: the last-applied annotation says what Git wants."""
    parent = recordings.argocd_deployment()
    parent["spec"]["replicas"] = 9
    for entry in parent["metadata"]["managedFields"]:
        entry["fieldsV1"].get("f:spec", {}).pop("f:replicas", None)  # whoever scales becomes the owner
    back = recordings.changed(
        "kubectl-scale.csa.validate",
        object={"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {}, "spec": {"replicas": 3}},
    )

    decision, _ = decided(back, parent=parent)

    assert decision.reason is Reason.CONVERGING


def test_a_scale_without_its_parent_is_not_judged():
    """A Scale says nothing about who manages what it scales."""
    with pytest.raises(ParentUnknown):
        decided(recordings.request("kubectl-scale.csa.validate"))


def test_the_audit_mode_lets_drift_pass_and_says_so():
    """In audit mode nothing is refused, and everything that would be is told apart."""
    decision, fields = decided(recordings.request("kubectl-edit.csa.validate"), policy=replace(POLICY, mode=Mode.AUDIT))

    assert (decision.verdict, decision.reason, fields) == (ALLOW, Reason.WOULD_DENY, [REPLICAS])


def test_an_impersonated_reconciler_is_nobody_special():
    """`kubectl --as=system:serviceaccount:argocd:...` carries no uid, and counts as the person behind it."""
    user = {"username": "system:serviceaccount:argocd:argocd-application-controller", "groups": []}

    decision, _ = decided(recordings.changed("gitops-update-deployment.csa.validate", userInfo=user))

    assert decision.verdict is DENY


def test_an_unconfigured_tenant_is_no_reconciler():
    """Flux's tenants are believed only when they are configured."""
    decision, _ = decided(recordings.request("real-flux-tenant-update.3.validate"), policy=Policy())

    assert (decision.verdict, decision.reason) == (DENY, Reason.DRIFT)


def test_a_field_manager_is_a_claim():
    """Whoever calls himself argocd-controller is still the user that he is."""
    request = recordings.changed("kubectl-edit.csa.validate", options={"fieldManager": "argocd-controller"})

    assert decided(request)[0].verdict is DENY


def test_the_exempt_are_not_looked_at():
    """An identity that the configuration exempts may do everything."""
    policy = replace(POLICY, exempt=(replace(POLICY.tools[0].reconcilers[0], name="group:developers"),))

    assert decided(recordings.request("kubectl-delete.csa.validate"), policy=policy)[0].reason is Reason.IGNORED


def test_a_copy_of_a_mark_does_not_count():
    """A tracking-id that names another object manages nothing."""
    request = recordings.request("kubectl-edit.csa.validate")
    review = {"object": request.object, "oldObject": request.old_object}
    for obj in review.values():
        assert obj is not None
        obj["metadata"]["annotations"]["argocd.argoproj.io/tracking-id"] = "guestbook:apps/Deployment:guestbook/other"

    decision, _ = decided(recordings.changed("kubectl-edit.csa.validate", **review))

    assert decision.reason is Reason.NOT_MANAGED


def test_taking_the_mark_away_in_the_same_write_does_not_help():
    """The old object counts as much as the new."""
    request = recordings.request("kubectl-edit.csa.validate")
    assert request.object is not None
    del request.object["metadata"]["annotations"]["argocd.argoproj.io/tracking-id"]

    decision, fields = decided(recordings.changed("kubectl-edit.csa.validate", object=request.object))

    assert decision.verdict is DENY
    assert REPLICAS in fields


def test_adopting_an_object_into_an_application_is_drift():
    """A mark added by hand is as much drift as one taken away."""
    request = recordings.request("kubectl-annotate-remove-tracking.csa.validate")
    for obj in (request.object, request.old_object):
        assert obj is not None
        del obj["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"]

    decision, _ = decided(
        recordings.changed(
            "kubectl-annotate-remove-tracking.csa.validate", object=request.old_object, oldObject=request.object
        )
    )

    assert decision.verdict is DENY


def test_wiping_managed_fields_is_drift():
    """Fields taken out of the tool's entry without a change of value would make the next change undeclared."""
    request = recordings.request("kubectl-patch-noop.csa.validate")
    assert request.object is not None
    request.object["metadata"]["managedFields"] = []

    decision, fields = decided(recordings.changed("kubectl-patch-noop.csa.validate", object=request.object))

    assert (decision.verdict, fields) == (DENY, [".metadata.managedFields"])


def test_a_controller_may_change_what_git_does_not_declare():
    """Other service accounts are bound by declared fields only."""
    request = recordings.request("kubectl-annotate.csa.validate")
    deployer = {"username": "system:serviceaccount:ci:deployer", "uid": "1", "groups": ["system:serviceaccounts"]}

    decision, _ = decided(recordings.changed("kubectl-annotate.csa.validate", userInfo=deployer))

    assert request.user.username == "alice"
    assert (decision.verdict, decision.reason) == (ALLOW, Reason.NO_DRIFT)


def test_a_controller_passes_where_it_is_not_known_what_git_declares():
    """Unknown is not nothing, but no reason for an outage either."""
    request = recordings.request("ci-set-image.csa.validate")
    for obj in (request.object, request.old_object):
        assert obj is not None
        obj["metadata"]["managedFields"] = []
        del obj["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"]
    request = recordings.changed("ci-set-image.csa.validate", object=request.object, oldObject=request.old_object)

    assert decided(request)[0].reason is Reason.UNKNOWN


def test_every_rule_can_be_told_from_its_number():
    """The table stands in order, and its last line takes whatever is left."""
    numbers = [int(rule.number) for rule in RULES]
    nothing = Facts(
        ref=ObjectRef(group="", kind="", namespace="", name=""),
        operation=Operation.UPDATE,
        webhook=Webhook.VALIDATE,
        actor=Actor.PERSON,
    )

    assert numbers == sorted(numbers)
    assert RULES[-1].fits(nothing, Policy())
