"""May this write break the glass, until when, and does the stamp on it say no more than that?

The right itself is the cluster's to give (verb `break-glass`) and comes in as an argument; the reason, the kinds and
the time are the configuration's. Easy to get wrong: /mutate and /validate may run in different replicas, so /validate
finds the window's id in the stamp, and believes it only if its seal, its name and its time fit this write.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from webhook.admission import Webhook
from webhook.break_glass import Grant, deadline
from webhook.durations import parse_duration
from webhook.facts import Facts
from webhook.policy import Policy


def with_grant(
    facts: Facts, policy: Policy, *, user: str, right: str | None, now: datetime, new_id: Callable[[], str]
) -> Facts:
    """Return the facts with the grant that covers this write, or with why there is none.

    Only for facts that want a grant. `right` is None if the user has the right to break the glass, else why not.
    """
    refusal = _refusal(facts, policy, right)
    if refusal:
        return replace(facts, refusal=refusal)
    settings = policy.break_glass
    asked_for = parse_duration(facts.ask.duration) if facts.ask and facts.ask.duration else settings.window
    if facts.window is not None:
        until = facts.window.until
        if facts.ask is not None:
            until = deadline(facts.window.opened, asked_for, now, settings.longest_window)
        grant = Grant(id=facts.window.id, by=facts.window.by, until=until, opens=False)
    elif facts.webhook is Webhook.VALIDATE and facts.stamp is not None:
        grant = Grant(id=facts.stamp.id, by=facts.stamp.by, until=facts.stamp.until, opens=True)
    else:
        until = deadline(now, asked_for, now, settings.longest_window)
        grant = Grant(id=new_id(), by=user, until=until, opens=True)
    return _checked_stamp(replace(facts, grant=grant), policy, user, now)


_SKEW = timedelta(minutes=1)


def _checked_stamp(facts: Facts, policy: Policy, user: str, now: datetime) -> Facts:
    """Take a stamp for none that says more than the write allows: another's name, another window, too long a time."""
    stamp, grant = facts.stamp, facts.grant
    if facts.webhook is Webhook.MUTATE or stamp is None or grant is None:
        return facts
    latest = min(now, stamp.opened) + policy.break_glass.longest_window + _SKEW
    by = user if grant.opens else grant.by
    genuine = stamp.id == grant.id and stamp.by == by and now < stamp.until <= latest
    return facts if genuine else replace(facts, stamp=None)


def _refusal(facts: Facts, policy: Policy, right: str | None) -> str:
    settings = policy.break_glass
    kinds = {facts.ref.kind, f"{facts.ref.kind}.{facts.ref.group}"}
    if kinds & settings.excluded_kinds:
        return f"there is no break-glass for {facts.ref.kind}"
    if right is not None:
        return right
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
