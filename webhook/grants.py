"""May this write break the glass, until when, and does the stamp on it say no more than that?

The right itself is the cluster's to give (verb `break-glass`) and comes in as an argument; the reason, the kinds and
the time are the configuration's. Easy to get wrong: /mutate and /validate may run in different replicas and be called
again, so the window's id is read from the stamp that stands there, and believed only if its seal, its name, its age
and its end fit this very write. A stamp kept from an earlier window fits none.
"""

import re
from collections.abc import Callable
from datetime import datetime, timedelta

from msgspec.structs import replace

from webhook.actors import Actor
from webhook.break_glass import Grant, Stamp, deadline
from webhook.durations import parse_duration
from webhook.facts import Facts
from webhook.policy import Policy

_ONE_WRITE = timedelta(seconds=60)
"""The longest that one write takes from its first admission call to its last, clocks of replicas included."""


def with_grant(
    facts: Facts, policy: Policy, *, user: str, right: str | None, now: datetime, new_id: Callable[[], str]
) -> Facts:
    """Return the facts with the grant that covers this write, or with why there is none.

    Only for facts that want a grant. `right` is None if the user has the right to break the glass, else why not.
    """
    if right is not None and facts.actor is Actor.CONTROLLER and facts.ask is None:
        return facts  # a program that asked for nothing, in somebody's window
    if refusal := _refusal(facts, policy, right):
        return replace(facts, refusal=refusal)
    until = _until(facts, policy, now)
    if facts.window is not None:
        grant = Grant(id=facts.window.id, by=facts.window.by, until=until, opens=False)
        earlier = facts.stamp
    else:
        earlier = facts.stamp if facts.stamp and abs(now - facts.stamp.opened) < _ONE_WRITE else None
        grant = Grant(id=earlier.id if earlier else new_id(), by=user, until=until, opens=True)
    stamp = _fitting(earlier, grant, policy)
    if stamp is not None and abs(stamp.until - until) < _ONE_WRITE:
        grant = replace(grant, until=stamp.until)  # an earlier call for the same write, by another clock: it stands
    return replace(facts, grant=grant, stamp=stamp)


def _until(facts: Facts, policy: Policy, now: datetime) -> datetime:
    settings = policy.break_glass
    if facts.window is not None and facts.ask is None:
        return facts.window.until
    asked_for = parse_duration(facts.ask.duration) if facts.ask and facts.ask.duration else settings.window
    return deadline(facts.window.opened if facts.window else now, asked_for, now, settings.longest_window)


def _fitting(stamp: Stamp | None, grant: Grant, policy: Policy) -> Stamp | None:
    """Return the stamp if it says what the grant allows: the same window and name, and no longer than any may be."""
    if stamp is None or (stamp.id, stamp.by) != (grant.id, grant.by):
        return None
    return stamp if stamp.until <= stamp.opened + policy.break_glass.longest_window + _ONE_WRITE else None


def _refusal(facts: Facts, policy: Policy, right: str | None) -> str:
    settings = policy.break_glass
    if {facts.ref.kind, f"{facts.ref.kind}.{facts.ref.group}"} & settings.excluded_kinds:
        return f"there is none for a {facts.ref.kind}"
    if right is not None:
        return right
    if facts.unnamed:
        return "the object's name is generated, so it can't be sealed: give it a name of its own"
    if facts.ask is None:
        return ""
    if not re.fullmatch(settings.reason_pattern, facts.ask.reason, re.DOTALL):
        return f"the reason does not fit: {settings.reason_hint} (pattern {settings.reason_pattern})"
    return _refused_duration(facts.ask.duration)


def _refused_duration(duration: str | None) -> str:
    try:
        fits = duration is None or parse_duration(duration) > timedelta(0)
    except ValueError:
        fits = False
    return "" if fits else "break-glass-for is no duration such as 90s, 30m or 1h30m"
