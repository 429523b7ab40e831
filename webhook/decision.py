"""The decision: given the facts of one write, allow it, deny it, or let it through as break-glass.

Pure and total: every combination of facts has exactly one decision, the same for /mutate, /validate and `explain`.
`RULES` is the whole of it, read from the top; the first rule that fits wins. Easy to get wrong: the order. A stamp
written by hand is refused before anybody asks whether anything drifts, and an undo passes before break-glass is looked
at.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from webhook.actors import Actor
from webhook.admission import Webhook
from webhook.facts import Facts
from webhook.fields import Change
from webhook.policy import Mode, Policy


class Verdict(StrEnum):
    """What happens to the write."""

    ALLOW = "Allow"
    DENY = "Deny"
    BREAK_GLASS = "BreakGlass"


class Reason(StrEnum):
    """Why: a stable code for logs, records and tests."""

    IGNORED = "Ignored"
    NOT_MANAGED = "NotManaged"
    HELD = "Held"
    RECONCILER = "Reconciler"
    SYSTEM = "System"
    STAMP_FORGED = "StampForged"
    NO_DRIFT = "NoDrift"
    CONVERGING = "Converging"
    GRANTED = "Granted"
    UNKNOWN = "Unknown"
    WOULD_DENY = "WouldDeny"
    GRANT_REFUSED = "GrantRefused"
    DRIFT = "Drift"
    CANNOT_JUDGE = "CannotJudge"
    PARENT_UNKNOWN = "ParentUnknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was decided, and by which rule. `drift` are the fields that would differ from Git."""

    verdict: Verdict
    reason: Reason
    rule: str
    drift: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the table."""

    number: str
    says: str
    verdict: Verdict
    reason: Reason
    fits: Callable[[Facts, Policy], bool]


def _is_forged(facts: Facts) -> bool:
    ours = facts.grant is not None and (facts.webhook is Webhook.MUTATE or facts.stamp is not None)
    return facts.stamps_changed and not ours


RULES: tuple[Rule, ...] = (
    Rule("0", "exempt, or no configuration", Verdict.ALLOW, Reason.IGNORED, lambda f, _: bool(f.ignored)),
    Rule(
        "1",
        "nothing of Git's is touched",
        Verdict.ALLOW,
        Reason.NOT_MANAGED,
        lambda f, _: not f.managed and not f.touches_namespace_keys,
    ),
    Rule(
        "2",
        "its reconciler would undo what an open window holds",
        Verdict.DENY,
        Reason.HELD,
        lambda f, _: f.actor is Actor.RECONCILER and bool(f.held),
    ),
    Rule("3", "its reconciler writes", Verdict.ALLOW, Reason.RECONCILER, lambda f, _: f.actor is Actor.RECONCILER),
    Rule(
        "4",
        "the cluster itself writes, or driftgate's controller and nothing but its own keys",
        Verdict.ALLOW,
        Reason.SYSTEM,
        lambda f, _: f.actor is Actor.SYSTEM or (f.actor is Actor.DRIFTGATE and f.only_own_keys),
    ),
    Rule(
        "5",
        "somebody writes driftgate's own stamps by hand",
        Verdict.DENY,
        Reason.STAMP_FORGED,
        lambda f, _: _is_forged(f),
    ),
    Rule("6", "nothing protected changes", Verdict.ALLOW, Reason.NO_DRIFT, lambda f, _: not f.drift),
    Rule(
        "7",
        "every protected change takes the value that Git declares",
        Verdict.ALLOW,
        Reason.CONVERGING,
        lambda f, _: f.converging,
    ),
    Rule(
        "8",
        "a grant covers it",
        Verdict.BREAK_GLASS,
        Reason.GRANTED,
        lambda f, _: f.grant is not None and f.stamped,
    ),
    Rule(
        "9",
        "a controller writes, no mark changes, and it is not known what Git declares",
        Verdict.ALLOW,
        Reason.UNKNOWN,
        lambda f, _: f.actor is Actor.CONTROLLER and not f.marks_changed and not f.declared_known,
    ),
    Rule("10", "the mode is audit", Verdict.ALLOW, Reason.WOULD_DENY, lambda _, p: p.mode is Mode.AUDIT),
    Rule(
        "11",
        "break-glass was asked for and may not be had",
        Verdict.DENY,
        Reason.GRANT_REFUSED,
        lambda f, _: bool(f.refusal) or (f.grant is not None and not f.stamped),
    ),
    Rule("11", "otherwise: drift", Verdict.DENY, Reason.DRIFT, lambda _f, _p: True),
)


def decide(facts: Facts, policy: Policy) -> Decision:
    """Return what the first rule that fits says."""
    rule = next(rule for rule in RULES if rule.fits(facts, policy))
    drift = facts.held if rule.reason is Reason.HELD else facts.drift
    return Decision(verdict=rule.verdict, reason=rule.reason, rule=f"{rule.number}. {rule.says}", drift=drift)
