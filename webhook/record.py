"""A record: one line of the audit log, as plain JSON. Who keeps it, and where, is not known here.

A record never holds an object, nor a value of a Secret: `drift` comes from `messages.py`, already masked and capped.
"""

import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from webhook.errors import RecordsError

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_ulid(now: Callable[[], float] = time.time, randomness: Callable[[int], int] = secrets.randbits) -> str:
    """Return a ULID: 26 characters that sort by time. `now` gives Unix seconds, `randomness(n)` n random bits."""
    number = (int(now() * 1000) & ((1 << 48) - 1)) << 80 | randomness(80)
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


def print_millis(when: datetime) -> str:
    """Return the time of a record: RFC 3339 in UTC with milliseconds."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{when.microsecond // 1000:03}Z"


class Drift(msgspec.Struct, frozen=True):
    """One changed field, for people: printed path, and the printed values (empty string: hidden)."""

    path: str
    before: str
    after: str


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One decision, or one step of a break-glass window (`event`), worth keeping.

    `time` is RFC 3339 in UTC with milliseconds. `event` is "review" for a decision; "window.opened", "window.closed",
    "issue.filed" and the like for what the controller did, where `verdict` is empty and `detail` says more.
    """

    id: str
    time: str
    event: str = "review"
    cluster: str = ""
    uid: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()
    operation: str = ""
    group: str = ""
    version: str = ""
    resource: str = ""
    sub_resource: str = ""
    kind: str = ""
    namespace: str = ""
    name: str = ""
    managed_by: str = ""
    verdict: str = ""
    reason: str = ""
    drift: tuple[Drift, ...] = ()
    window: str = ""
    write: str = ""
    """Of a granted write: its name in the stamp; and `after_write`, the one that was stored before it."""
    after_write: str = ""
    ask: str = ""
    until: str = ""
    detail: str = ""
    count: int = 1


_decoder = msgspec.json.Decoder(Record)


def encode(record: Record) -> bytes:
    """Return the record as one line of JSON, without the line's end."""
    return msgspec.json.encode(record)


def decode(line: bytes) -> Record:
    """Return the record in a line of JSON. Raises RecordsError if it is none."""
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RecordsError(f"this line is no record: {error}") from None


def as_json(record: Record) -> dict[str, Any]:
    """Return the record as JSON types, defaults left out."""
    built: dict[str, Any] = msgspec.to_builtins(record)
    return built
