"""What is protected, from whom, and what is done about it: the part of the configuration that decides.

Pure values: `config.py` makes them from the file. Everything that is not configurable, and that the rules, the
generated matchConditions and the README have to agree on, stands here once.
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from webhook.managed import TOOLS, Identity, Tool


class Mode(StrEnum):
    """What is done about drift."""

    ENFORCE = "enforce"
    """It is refused."""
    AUDIT = "audit"
    """It passes, and is recorded as WouldDeny."""


TOLERATED = (
    '.spec.template.metadata.annotations["kubectl.kubernetes.io/restartedAt"]',
    '.metadata.annotations["deployment.kubernetes.io/revision"]',
    '.metadata.annotations["reconcile.fluxcd.io/requestedAt"]',
    '.metadata.annotations["reconcile.fluxcd.io/forceAt"]',
    '.metadata.annotations["reconcile.fluxcd.io/resetAt"]',
    '.metadata.annotations["argocd.argoproj.io/refresh"]',
    '.metadata.annotations["argocd.argoproj.io/hydrate"]',
)
"""Printed paths that anybody may change: harmless gestures (`kubectl rollout restart`, `flux reconcile`), and the
annotation that the deployment controller writes back at once when a `kubectl replace` drops it."""

SYNC_OPERATION = ".operation"
"""Tolerated on an Argo CD Application only: `argocd app sync`."""

IGNORED_SUBRESOURCES = frozenset(
    {
        *("attach", "exec", "portforward", "proxy", "log"),
        *("binding", "eviction", "token", "approval", "ephemeralcontainers", "resize"),
    }
)
"""Subresources that are no configuration; an unknown one is judged."""

IGNORED_RESOURCES = (
    ("coordination.k8s.io", "leases"),
    ("", "events"),
    ("events.k8s.io", "events"),
    ("authentication.k8s.io", "*"),
    ("authorization.k8s.io", "*"),
)
"""(group, resource) that nobody keeps in Git and that are written all the time."""

SYSTEM_USERS = frozenset({"system:apiserver", "system:kube-controller-manager", "system:kube-scheduler"})
"""The control plane under its own names."""

NODES = "system:nodes"
"""The group of the nodes."""

BUILT_IN_CONTROLLERS = frozenset(
    "system:serviceaccount:kube-system:" + name
    for name in """
    attachdetach-controller certificate-controller clusterrole-aggregation-controller cronjob-controller
    daemon-set-controller deployment-controller device-taint-eviction-controller disruption-controller
    endpoint-controller endpointslice-controller endpointslicemirroring-controller ephemeral-volume-controller
    expand-controller generic-garbage-collector horizontal-pod-autoscaler job-controller
    kube-apiserver-serving-clustertrustbundle-publisher legacy-service-account-token-cleaner namespace-controller
    node-controller persistent-volume-binder pod-garbage-collector podcertificaterequestcleaner
    pv-protection-controller pvc-protection-controller replicaset-controller replication-controller
    resource-claim-controller resourcequota-controller root-ca-cert-publisher route-controller
    selinux-warning-controller service-account-controller service-cidrs-controller service-controller
    statefulset-controller storage-version-garbage-collector storage-version-migrator-controller token-cleaner
    ttl-after-finished-controller ttl-controller vac-protection-controller
    validatingadmissionpolicy-status-controller volumeattributesclass-protection-controller
    """.split()  # noqa: SIM905 -- forty names read better without quotes
)
"""kube-controller-manager's service accounts (`--use-service-account-credentials`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakGlassPolicy:
    """Who may break the glass beyond having the right: the reason, the kinds, the time."""

    reason_pattern: str = r"\S.{7,}"
    reason_hint: str = "at least eight characters that say why"
    window: timedelta = timedelta(hours=1)
    longest_window: timedelta = timedelta(hours=8)
    excluded_kinds: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Everything that `decide` goes by."""

    mode: Mode = Mode.ENFORCE
    tools: tuple[Tool, ...] = TOOLS
    people: frozenset[str] = frozenset()
    exempt: tuple[Identity, ...] = ()
    tolerated: tuple[str, ...] = TOLERATED
    break_glass: BreakGlassPolicy = BreakGlassPolicy()
    controller: str = "system:serviceaccount:driftgate:driftgate-controller"
