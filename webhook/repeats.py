"""The same review again: counted, not recorded again.

A controller in a loop must not flood the audit log, and the API server asks again for one and the same write when it
meets a conflict. A denial is the same if user, object, operation and fields are; the count becomes one record of its
own, `event: review.repeated`, once its ten minutes are over. A granted change is the same only if nothing else was
granted on the object in between, and seconds apart. Bounded: the oldest go when there are too many.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from webhook.record import Record

_SPAN = timedelta(minutes=10)
_ONE_WRITE = timedelta(seconds=30)
"""The longest that the API server tries one write again."""
_MOST = 4096


@dataclass(slots=True)
class _Denial:
    first: Record
    since: datetime
    repeats: int = 0


class Repeats:
    """Denials of the last ten minutes. Thread-safe."""

    def __init__(self, *, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._denials: dict[tuple[object, ...], _Denial] = {}
        self._over: list[_Denial] = []
        self._granted: dict[tuple[object, ...], _Denial] = {}
        self._lock = threading.Lock()

    def granted(self, record: Record, now: datetime) -> str:
        """Return the id of the record that stands for the same write, asked about again; empty if it is new."""
        place = (record.group, record.resource, record.namespace, record.name)
        with self._lock:
            last = self._granted.pop(place, None)
            if last is not None and now - last.since < _ONE_WRITE and _content(last.first) == _content(record):
                self._granted[place] = last
                return last.first.id
            self._granted[place] = _Denial(first=record, since=now)
            if len(self._granted) > _MOST:
                del self._granted[next(iter(self._granted))]
            return ""

    def seen(self, record: Record, now: datetime) -> str:
        """Return the id of the record that stands for the same denial, and count it; empty if it is new."""
        key = _content(record)
        with self._lock:
            known = self._denials.get(key)
            if known is not None and now - known.since < _SPAN:
                known.repeats += 1
                return known.first.id
            if known is not None:
                self._over.append(self._denials.pop(key))
            self._denials[key] = _Denial(first=record, since=now)
            return ""

    def flush(self, now: datetime, *, all_of_them: bool = False) -> list[Record]:
        """Return a record for each denial that was repeated and whose ten minutes are over, and forget it."""
        with self._lock:
            over: list[tuple[object, ...]] = []
            for key, denial in self._denials.items():  # oldest first
                if not all_of_them and now - denial.since < _SPAN and len(self._denials) - len(over) <= _MOST:
                    break
                over.append(key)
            ended = [*self._over, *(self._denials.pop(key) for key in over)]
            self._over.clear()
        return [
            msgspec.structs.replace(
                d.first, id=self._new_id(), event="review.repeated", count=d.repeats, detail=d.first.id
            )
            for d in ended
            if d.repeats
        ]


def _content(record: Record) -> tuple[object, ...]:
    return (
        *(record.user, record.operation, record.group, record.resource, record.sub_resource),
        *(
            record.namespace,
            record.name,
            record.verdict,
            record.reason,
            record.drift,
            record.window,
            record.write,
            record.detail,
        ),
    )
