"""A grant and its sealed stamp: who, why, until when, which fields; and the annotations that carry it.

A person asks with the annotation `driftgate.dev/break-glass`. /mutate answers by stamping the object: id, by, until,
fields, and a seal over them, with a key that only webhook and controller hold. A stamp whose seal does not fit this
very object is worthless: it grants nothing, holds nothing, files nothing. Easy to get wrong: an ask counts only where
a write adds or changes it, and a stamp is live only while the ask still stands beside it and its time is not up.
"""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import msgspec

from webhook.admission import AdmissionRequest, Object, annotations, labels
from webhook.fields import ABSENT, Change, Path, canonical, overlap, print_path, within

PREFIX = "driftgate.dev/"
ASK = PREFIX + "break-glass"
ASK_FOR = PREFIX + "break-glass-for"
ID = PREFIX + "break-glass-id"
BY = PREFIX + "break-glass-by"
UNTIL = PREFIX + "break-glass-until"
FIELDS = PREFIX + "break-glass-fields"
WRITE = PREFIX + "break-glass-write"
SEAL = PREFIX + "break-glass-seal"
LABEL = PREFIX + "break-glass"
ACTIVE = "active"

ASKS = frozenset({ASK, ASK_FOR})
STAMPS = frozenset({ID, BY, UNTIL, FIELDS, WRITE, SEAL})

EVERYTHING = "*"
"""Stands for all fields, where a list of them would be too long for an annotation."""
_MOST_FIELDS = 100
_LONGEST_FIELDS = 16 * 1024

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRef:
    """Which object: what a stamp is sealed to."""

    group: str
    kind: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What stands on an object while its window is open. `fields` are printed paths, or `*`."""

    id: str
    by: str
    until: datetime
    fields: tuple[str, ...]
    write: str = ""
    """The last granted write that was stored, as `next_write` names it; empty while there is none."""

    @property
    def opened(self) -> datetime:
        """When the window was opened: the time in the ULID."""
        number = 0
        for letter in self.id[:10]:
            number = number * 32 + _CROCKFORD.index(letter)
        return datetime.fromtimestamp(number / 1000, tz=UTC)

    def holds(self, change: Change) -> bool:
        """Tell whether the window holds a field that `change` touches."""
        path = print_path(change.path)
        return EVERYTHING in self.fields or any(overlap(path, field) for field in self.fields)

    def covers(self, changes: Iterable[Change]) -> bool:
        """Tell whether every change is listed in the stamp."""
        if EVERYTHING in self.fields:
            return True
        paths = [print_path(change.path) for change in changes]
        return all(any(within(path, field) for field in self.fields) for path in paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a person asks for: why, and for how long (None: as configured)."""

    reason: str
    duration: str | None


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """Permission for a time, as it will stand in the stamp. `opens`: this very write opens the window."""

    id: str
    by: str
    until: datetime
    opens: bool


def seal_of(stamp: Stamp, ref: ObjectRef, key: bytes) -> str:
    """Return the seal: HMAC-SHA256 in hex over the object and all of the stamp."""
    sealed = [
        *("driftgate.dev/v1", ref.group, ref.kind, ref.namespace, ref.name),
        *(stamp.id, stamp.by, print_time(stamp.until), list(stamp.fields), stamp.write),
    ]
    return hmac.new(key, msgspec.json.encode(sealed), hashlib.sha256).hexdigest()


def read_stamp(obj: Object | None, ref: ObjectRef, key: bytes) -> Stamp | None:
    """Return the stamp on `obj`; None if there is none, or its seal does not fit."""
    found = annotations(obj)
    texts = [found.get(name) for name in (ID, BY, UNTIL, FIELDS, WRITE, SEAL)]
    if any(not isinstance(text, str) for text in texts):
        return None
    id_, by, until, fields, write, seal = (str(text) for text in texts)
    try:
        named = msgspec.json.decode(fields, type=tuple[str, ...])
        stamp = Stamp(id=id_, by=by, until=parse_time(until), fields=named, write=write)
        genuine = hmac.compare_digest(seal_of(stamp, ref, key).encode(), seal.encode())
        genuine = genuine and print_time(stamp.until) == until  # no other spelling of the same moment
        stamp.opened  # noqa: B018 -- an id that is no ULID raises
    except (ValueError, IndexError, msgspec.DecodeError, OverflowError):
        return None
    return stamp if genuine else None


def is_live(stamp: Stamp | None, obj: Object | None, now: datetime) -> bool:
    """Tell whether the window is open: its time is not up, and the ask still stands."""
    return stamp is not None and now < stamp.until and ASK in annotations(obj)


def asked(old: Object | None, new: Object | None) -> Ask | None:
    """Return what this write asks for; None if it adds or changes no ask."""
    before, after = annotations(old), annotations(new)
    reason = after.get(ASK)
    if not isinstance(reason, str) or all(before.get(key) == after.get(key) for key in ASKS):
        return None
    duration = after.get(ASK_FOR)
    return Ask(reason=reason, duration=duration if isinstance(duration, str) else None)


def open_stamp(*, id_: str, by: str, until: datetime, fields: Iterable[str]) -> Stamp:
    """Return a new window's stamp."""
    return Stamp(id=id_, by=by, until=until.replace(microsecond=0), fields=_merged((), fields))


def grow(stamp: Stamp, fields: Iterable[str], until: datetime | None = None) -> Stamp:
    """Return the stamp with further fields, and a later end where one is given."""
    return replace(stamp, fields=_merged(stamp.fields, fields), until=(until or stamp.until).replace(microsecond=0))


def _merged(fields: tuple[str, ...], more: Iterable[str]) -> tuple[str, ...]:
    merged = list(fields)
    for field in more:
        if not any(within(field, known) for known in merged):
            merged = [known for known in merged if not within(known, field)] + [field]
        if EVERYTHING in merged or len(merged) > _MOST_FIELDS:
            return (EVERYTHING,)
    return tuple(merged) if sum(len(field.encode()) for field in merged) <= _LONGEST_FIELDS else (EVERYTHING,)


def stamp_annotations(stamp: Stamp, ref: ObjectRef, key: bytes) -> dict[str, str | None]:
    """Return the annotations that carry the stamp."""
    return {
        ID: stamp.id,
        BY: stamp.by,
        UNTIL: print_time(stamp.until),
        FIELDS: msgspec.json.encode(list(stamp.fields)).decode(),
        WRITE: stamp.write,
        SEAL: seal_of(stamp, ref, key),
    }


def next_write(stamp: Stamp, user: str, changes: Iterable[Change], key: bytes) -> str:
    """Return the name of a granted write: a keyed hash over the one before it in its window, who writes, and what.

    So the stamp that is stored in the end tells which of all granted writes were stored, each by the next; a write
    that something after us refused, or that was never sent to the API server, is not among them. The same write, asked
    about again, has the same name.
    """
    told = [
        stamp.id,
        stamp.write,
        user,
        *([print_path(c.path), _hashable(c.before), _hashable(c.after)] for c in changes),
    ]
    return hmac.new(key, b"write" + msgspec.json.encode(told), hashlib.sha256).hexdigest()[:32]


def _hashable(value: object) -> object:
    return ["absent"] if value is ABSENT else [canonical(value)]


def stamps_changed(old: Object | None, new: Object | None) -> bool:
    """Tell whether a write touches driftgate's own stamps."""
    before, after = annotations(old), annotations(new)
    return any(before.get(key) != after.get(key) for key in STAMPS) or labels(old).get(LABEL) != labels(new).get(LABEL)


def is_own_path(path: Path) -> bool:
    """Tell whether a path is one of driftgate's own: an ask, a stamp, the label."""
    return len(path) == 3 and path[0] == "f:metadata" and path[2].startswith("f:" + PREFIX + "break-glass")


def ref_of(request: AdmissionRequest, kind: str | None = None, group: str | None = None) -> ObjectRef:
    """Return which object a review is about."""
    return ObjectRef(
        group=request.kind.group if group is None else group,
        kind=kind or request.kind.kind,
        namespace=request.namespace,
        name=request.name,
    )


def deadline(opened: datetime, asked_for: timedelta, now: datetime, longest: timedelta) -> datetime:
    """Return until when a window is open that was opened at `opened` and is asked for from `now` on."""
    return min(now + asked_for, opened + longest)


def print_time(when: datetime) -> str:
    """Return the time as the API writes it: RFC 3339 in UTC, whole seconds."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    """Return the time in RFC 3339. Raises ValueError."""
    when = datetime.fromisoformat(text)
    if when.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return when
