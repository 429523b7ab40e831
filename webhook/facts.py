"""The facts of one write: who writes, what Git's marks say, what changes, and what of that would be drift.

Pure: what the cluster has to be asked for (the parent of a Scale, the right to break the glass) is an argument. Easy to
get wrong: at /mutate a status write still shows what the server will reset, so only its labels and annotations count.
"""

from collections.abc import Sequence
from datetime import datetime

import msgspec
from msgspec.structs import replace

from webhook.actors import Actor, actor_of, is_exempt
from webhook.admission import (
    AdmissionRequest,
    GroupVersionKind,
    Object,
    Operation,
    Webhook,
    annotations,
    labels,
    metadata,
)
from webhook.break_glass import (
    ASK,
    ASKS,
    PREFIX,
    Ask,
    Grant,
    ObjectRef,
    Stamp,
    asked,
    is_live,
    is_own_path,
    read_stamp,
    ref_of,
    stamps_changed,
)
from webhook.declared import (
    LAST_APPLIED_PATH,
    converges,
    declared_by,
    last_applied_follows,
    owned_fields,
    wiped_fields,
)
from webhook.errors import ParentUnknown
from webhook.fields import ABSENT, Change, changes, print_path, within
from webhook.managed import ManagedBy, is_generated, managed_by
from webhook.policy import IGNORED_SUBRESOURCES, SYNC_OPERATION, Policy


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about one write. `drift` are the protected changes; all lists are empty where nothing is."""

    ref: ObjectRef
    operation: Operation
    webhook: Webhook
    actor: Actor
    ignored: str = ""
    managed: tuple[ManagedBy, ...] = ()
    touches_namespace_keys: bool = False
    changed: tuple[Change, ...] = ()
    drift: tuple[Change, ...] = ()
    held: tuple[Change, ...] = ()
    only_own_keys: bool = False
    stamps_changed: bool = False
    marks_changed: bool = False
    declared_known: bool = True
    converging: bool = False
    unnamed: bool = False  # created under a generated name, which /mutate does not know yet
    window: Stamp | None = None  # live, on the old object
    why: str = ""  # the ask on the old object: why the window is open
    stamp: Stamp | None = None  # genuine, on the new object
    ask: Ask | None = None
    closes: bool = False  # this write takes the ask away from an open window, and nothing else of the stamp
    scalable: bool = False
    scales: bool = False  # through the subresource, which can't be stamped
    grant: Grant | None = None
    refusal: str = ""

    @property
    def wants_grant(self) -> bool:
        """Whether the right to break the glass matters: somebody asks, or a window is open, and something drifts."""
        asks = self.ask is not None or self.window is not None
        writer = self.actor in {Actor.PERSON, Actor.CONTROLLER}
        return asks and writer and bool(self.managed) and bool(self.drift) and not self.converging

    @property
    def stamped(self) -> bool:
        """Whether what this write changes is covered by a genuine stamp, or may do without one."""
        if self.webhook is Webhook.MUTATE or self.operation is Operation.DELETE:
            return True
        changed = held_changes(self.drift)
        if self.stamp is None or not changed:
            return self.stamp is not None
        if self.scales:
            return self.stamp.covers(changed)
        # The write moved the stamp on. What the server or others added after /mutate needs not be listed in it.
        return self.stamp.write != (self.window.write if self.window else "")


def facts_of(
    request: AdmissionRequest,
    policy: Policy,
    *,
    webhook: Webhook,
    key: bytes,
    now: datetime,
    parent: Object | None = None,
) -> Facts:
    """Return the facts of one write.

    `key` is what stamps are sealed with. `parent` is the object that a Scale scales, as it is stored now. Raises
    ParentUnknown where it is needed and not given, UndecodableFields if managedFields can't be read, MalformedReview
    if an object is no object.
    """
    blank = Facts(ref=ref_of(request), operation=request.operation, webhook=webhook, actor=Actor.PERSON)
    if ignored := _ignored(request, webhook, policy):
        return replace(blank, ignored=ignored)
    kind, old, new = _objects(request, webhook, parent)
    ref = ObjectRef(group=kind.group, kind=kind.kind, namespace=request.namespace, name=request.name)
    before, after = managed_by(old, kind, policy.tools), managed_by(new, kind, policy.tools)
    managed = before or after
    actor = actor_of(request.user, managed, policy)
    scales = request.sub_resource == "scale"
    blank = replace(blank, ref=ref, actor=actor, managed=managed, scales=scales)
    if managed:
        return _facts_of_managed(blank, old, new, policy, key=key, now=now)
    is_namespace = (kind.group, kind.kind) == ("", "Namespace") and new is not None
    if is_namespace and _own_keys(old) != _own_keys(new):
        changed = tuple(c for c in changes(_comparable(old), _comparable(new)) if is_own_path(c.path))
        return replace(blank, touches_namespace_keys=True, changed=changed, drift=changed, only_own_keys=True)
    return replace(blank, ask=asked(old, new))


def _ignored(request: AdmissionRequest, webhook: Webhook, policy: Policy) -> str:
    if request.sub_resource in IGNORED_SUBRESOURCES:
        return f"the subresource {request.sub_resource} is no configuration"
    if request.sub_resource == "scale" and webhook is Webhook.MUTATE:
        return "a patch on a Scale would be lost"
    if request.operation is Operation.CONNECT:
        return "a connection changes nothing"
    return "the user is exempt" if is_exempt(request.user, policy) else ""


def _own_keys(obj: Object | None) -> list[dict[str, str]]:
    """Return driftgate's own annotations and labels on a Namespace."""
    return [
        {key: value for key, value in section.items() if key.startswith(PREFIX)}
        for section in (annotations(obj), labels(obj))
    ]


def _objects(
    request: AdmissionRequest, webhook: Webhook, parent: Object | None
) -> tuple[GroupVersionKind, Object | None, Object | None]:
    """Return what is compared: kind, old and new object, as far as this request can change them."""
    old, new = request.old_object, request.object
    if request.operation is Operation.DELETE:
        return request.kind, old, None
    if request.sub_resource == "scale":
        return _scaled(request, parent)
    if request.sub_resource == "status" and webhook is Webhook.MUTATE:
        return request.kind, old, _with_metadata_of(old, new)
    return request.kind, old, new


def _scaled(request: AdmissionRequest, parent: Object | None) -> tuple[GroupVersionKind, Object, Object]:
    if parent is None:
        raise ParentUnknown(
            f"{request.resource.resource} {request.namespace}/{request.name} is scaled, and what it is is not known"
        )
    group, _, version = str(parent.get("apiVersion") or "").rpartition("/")
    kind = GroupVersionKind(group=group, version=version, kind=str(parent.get("kind") or ""))
    spec = parent.get("spec") or {}
    wanted = ((request.object or {}).get("spec") or {}).get("replicas", 0)
    return kind, parent, {**parent, "spec": {**spec, "replicas": wanted}}


def _with_metadata_of(old: Object | None, new: Object | None) -> Object:
    """Return `old` with the labels and annotations of `new`: all of a status write that may be stored."""
    sent = {name: value for name, value in metadata(new).items() if name in {"labels", "annotations"}}
    kept = {name: value for name, value in metadata(old).items() if name not in {"labels", "annotations"}}
    return {**(old or {}), "metadata": {**kept, **sent}}


_BOOKKEEPING = frozenset(
    {
        *("managedFields", "resourceVersion", "generation", "creationTimestamp", "uid", "selfLink"),
        *("deletionTimestamp", "deletionGracePeriodSeconds"),
    }
)


def _comparable(obj: Object | None) -> Object:
    """Return `obj` without what is never drift: status and bookkeeping."""
    kept = {name: value for name, value in (obj or {}).items() if name not in {"status", "metadata"}}
    return {**kept, "metadata": {n: v for n, v in metadata(obj).items() if n not in _BOOKKEEPING}}


def _facts_of_managed(
    facts: Facts, old: Object | None, new: Object | None, policy: Policy, *, key: bytes, now: datetime
) -> Facts:
    changed = _changed(old, new)
    stamp = read_stamp(old, facts.ref, key)
    window = stamp if is_live(stamp, old, now) else None
    facts = replace(
        facts,
        changed=changed,
        window=window,
        why=annotations(old).get(ASK, "") if window else "",
        stamps_changed=bool(new) and stamps_changed(old, new),
        only_own_keys=bool(new) and all(is_own_path(change.path) for change in changed),
        scalable="replicas" in ((new or {}).get("spec") or {}),
    )
    if facts.actor is Actor.RECONCILER:
        return replace(facts, held=_held(window, changed, new))
    if facts.actor is Actor.SYSTEM:
        return facts
    return _facts_of_drift(facts, old, new, policy, key)


def _changed(old: Object | None, new: Object | None) -> tuple[Change, ...]:
    if old is None or new is None:
        return (Change((), ABSENT if old is None else old, ABSENT if new is None else new),)
    return tuple(changes(_comparable(old), _comparable(new), [*owned_fields(old), *owned_fields(new)]))


def _held(window: Stamp | None, changed: Sequence[Change], new: Object | None) -> tuple[Change, ...]:
    """Return what a reconciler would undo. Without the stamp or the ask the window would end: those are held too."""
    if window is None:
        return ()
    if new is None:
        return tuple(changed)
    return tuple(c for c in changed if (is_own_path(c.path) and c.before is not ABSENT) or window.holds(c))


def _facts_of_drift(facts: Facts, old: Object | None, new: Object | None, policy: Policy, key: bytes) -> Facts:
    """Add what matters only for writers who may not do everything: people and controllers."""
    declared = declared_by(old, facts.managed)
    marks = {path for tool in policy.tools for path in tool.marks}
    stamp = read_stamp(new, facts.ref, key)
    is_update = old is not None and new is not None
    facts = replace(
        facts,
        declared_known=declared is not None,
        marks_changed=_changes_marks(facts, old, new, marks),
        stamp=stamp,
        ask=asked(old, new),
        closes=is_update and ASK not in annotations(new) and _same_window(facts.window, stamp),
        unnamed=old is None and "generateName" in metadata(new),
    )
    drift = tuple(c for c in facts.changed if not _is_free(c, facts, old, new, policy))
    if facts.actor is Actor.CONTROLLER and declared is not None and is_update:
        drift = tuple(c for c in drift if declared.states(c) or _always_protected(c, marks))
    if not drift and old is not None and new is not None:
        drift = wiped_fields(old, new, facts.managed, facts.changed)
    converging = old is not None and new is not None and converges(drift, old, declared, marks)
    return replace(facts, drift=drift, converging=converging and not any(is_own_path(change.path) for change in drift))


def _same_window(window: Stamp | None, stamp: Stamp | None) -> bool:
    return window is not None and stamp is not None and window.id == stamp.id


def _changes_marks(facts: Facts, old: Object | None, new: Object | None, marks: set[tuple[str, ...]]) -> bool:
    """Tell whether a write changes whose the object is. A controller's ownerReference takes it over as well.

    To create or delete an object whose mark names it is to adopt it, or to let it go. A mark that anybody copies along
    with other labels says no such thing.
    """
    if old is None or new is None:
        return any(m.tool.names_object for m in facts.managed)
    return is_generated(old) != is_generated(new) or any(_touches_mark(change, marks) for change in facts.changed)


def _touches_mark(change: Change, marks: set[tuple[str, ...]]) -> bool:
    return any(change.path == mark[: len(change.path)] for mark in marks)


def _always_protected(change: Change, marks: set[tuple[str, ...]]) -> bool:
    owners = change.path[:2] == ("f:metadata", "f:ownerReferences")
    return owners or change.path == LAST_APPLIED_PATH or is_own_path(change.path) or _touches_mark(change, marks)


def _is_free(change: Change, facts: Facts, old: Object | None, new: Object | None, policy: Policy) -> bool:
    """Tell whether anybody may make this change: tolerated, or no more than bookkeeping of what is true anyway."""
    if old is None or new is None:
        return False
    if is_own_path(change.path):
        # The label and the stamps are rule 5's. A dead ask may be taken away; where a window is open, that closes it.
        is_ask = change.path[1] == "f:annotations" and change.path[2].removeprefix("f:") in ASKS
        return not is_ask or (change.after is ABSENT and facts.window is None)
    if change.path == LAST_APPLIED_PATH:
        return last_applied_follows(old, new)
    path = print_path(change.path)
    if path == SYNC_OPERATION or within(path, SYNC_OPERATION):
        return (facts.ref.group, facts.ref.kind) == ("argoproj.io", "Application")
    return any(within(path, tolerated) for tolerated in policy.tolerated)


def held_changes(drift: Sequence[Change]) -> tuple[Change, ...]:
    """Return the changes that a stamp lists: not the ask itself, nor last-applied, which follows the fields in it."""
    listed = tuple(c for c in drift if not is_own_path(c.path) and c.path != LAST_APPLIED_PATH)
    return listed or tuple(c for c in drift if c.path == LAST_APPLIED_PATH)
