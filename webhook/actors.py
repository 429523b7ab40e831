"""Who writes, as far as `userInfo` can tell: a person, a controller, a reconciler, the cluster itself.

Easy to get wrong: a user agent and a field manager are claims. A service account without a uid is impersonated: it is
not the one whose name it carries, unless its tool writes by impersonation, and counts as a person.
"""

from collections.abc import Sequence
from enum import StrEnum

from webhook.admission import UserInfo
from webhook.managed import ManagedBy
from webhook.policy import BUILT_IN_CONTROLLERS, NODES, SYSTEM_USERS, Policy

_SERVICE_ACCOUNT = "system:serviceaccount:"


class Actor(StrEnum):
    """What kind of writer this is, for the object that it writes."""

    PERSON = "person"
    CONTROLLER = "controller"
    RECONCILER = "reconciler"
    SYSTEM = "system"
    DRIFTGATE = "driftgate"


def actor_of(user: UserInfo, managed: Sequence[ManagedBy], policy: Policy) -> Actor:
    """Return who writes an object with the marks `managed`."""
    if any(identity.is_user(user.username, user.uid, user.groups) for m in managed for identity in m.tool.reconcilers):
        return Actor.RECONCILER
    if user.username == policy.controller and user.uid:
        return Actor.DRIFTGATE
    if is_system(user):
        return Actor.SYSTEM
    if user.username.startswith(_SERVICE_ACCOUNT) and user.uid and user.username not in policy.people:
        return Actor.CONTROLLER
    return Actor.PERSON  # also who impersonates a service account: nothing says that a program does


def is_system(user: UserInfo) -> bool:
    """Tell whether the cluster itself writes: nodes, the API server, the built-in controllers by name."""
    if user.username in SYSTEM_USERS:
        return True
    if user.username.startswith("system:node:"):
        return NODES in user.groups
    return user.username in BUILT_IN_CONTROLLERS and bool(user.uid)


def is_exempt(user: UserInfo, policy: Policy) -> bool:
    """Tell whether the configuration lets this user's writes through unseen."""
    return any(identity.is_user(user.username, user.uid, user.groups) for identity in policy.exempt)
