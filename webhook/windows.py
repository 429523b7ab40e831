"""What the controller remembers of break-glass windows, in the ledger's own file.

The stamp on the object is the truth; this is what was done about it: which records belong to a window, which of them
were seen stored, where its issue is. Easy to get wrong: the controller may die anywhere, so a step is written down
after it took effect, and every step may be done twice.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from webhook.admission import GroupVersionResource
from webhook.break_glass import ObjectRef
from webhook.errors import RecordsError
from webhook.record import Record, decode


class State(StrEnum):
    """Where a window stands."""

    PENDING = "pending"
    """A review granted it; its stamp has not been seen stored."""
    OPEN = "open"
    CLOSING = "closing"
    """Its stamp is being taken away; `outcome` says why."""
    CLOSED = "closed"
    VOID = "void"
    """It never took effect: something after us refused the write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One break-glass window on one object."""

    id: str
    resource: GroupVersionResource
    ref: ObjectRef
    by: str
    why: str
    until: str
    state: State
    since: str
    issue: str = ""
    outcome: str = ""


class Transactions(Protocol):
    """What is needed of the ledger: its file, one transaction at a time."""

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """Return a transaction that is kept when its block ends, and undone when it raises."""
        ...


_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS windows (id TEXT PRIMARY KEY, group_ TEXT NOT NULL, version TEXT NOT NULL,"
    " resource TEXT NOT NULL, kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, by_ TEXT NOT NULL,"
    " why TEXT NOT NULL, until TEXT NOT NULL, state TEXT NOT NULL, since TEXT NOT NULL, issue TEXT NOT NULL,"
    " outcome TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS windows_by_state ON windows (state)",
    "CREATE TABLE IF NOT EXISTS window_changes"
    " (record TEXT PRIMARY KEY, window TEXT NOT NULL, settled INTEGER NOT NULL,"
    " write_ TEXT NOT NULL, after TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS window_changes_open ON window_changes (window, settled)",
    "CREATE TABLE IF NOT EXISTS window_cursor (one INTEGER PRIMARY KEY CHECK (one = 1), sequence INTEGER NOT NULL)",
    "INSERT OR IGNORE INTO window_cursor VALUES (1, 0)",
)
_COLUMNS = "id, group_, version, resource, kind, namespace, name, by_, why, until, state, since, issue, outcome"


class Windows:
    """The controller's memory. One writer: the controller that holds the ledger."""

    def __init__(self, ledger: Transactions) -> None:
        self._ledger = ledger
        with ledger.transaction() as connection:
            for statement in _SCHEMA:
                connection.execute(statement)

    def take_in(self, now: str) -> None:
        """Note the windows of all granted reviews that the ledger took in since the last time."""
        with self._ledger.transaction() as connection:
            (cursor,) = connection.execute("SELECT sequence FROM window_cursor").fetchone()
            rows = connection.execute(
                "SELECT sequence, record FROM records WHERE sequence > ? ORDER BY sequence LIMIT 1000", (cursor,)
            ).fetchall()
            for record in _readable(line for _, line in rows):
                if record.event == "review" and record.verdict == "BreakGlass":
                    _note(connection, record, now)
            if rows:
                connection.execute("UPDATE window_cursor SET sequence = ?", (rows[-1][0],))

    def adopt(self, window: Window) -> None:
        """Note a window that was found on an object, whose records are lost or not here yet."""
        with self._ledger.transaction() as connection:
            _insert(connection, window)
            given_up = (window.id,)
            connection.execute("UPDATE window_changes SET settled = 0 WHERE window = ? AND settled = 2", given_up)
            connection.execute(  # void: stored after all; closed: its stamp came back, from a backup for example
                "UPDATE windows SET state = 'pending', outcome = '' WHERE id = ? AND state IN ('void', 'closed')",
                given_up,
            )

    def unfinished(self) -> list[Window]:
        """Return the windows that are pending or open, oldest first."""
        with self._ledger.transaction() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM windows WHERE state IN ('pending', 'open', 'closing') ORDER BY id"  # noqa: S608 -- our own names
            ).fetchall()
        return [_window(row) for row in rows]

    def unsettled(self, window: str) -> list[Record]:
        """Return the records of a window that are neither told nor given up, oldest first."""
        with self._ledger.transaction() as connection:
            rows = connection.execute(
                "SELECT r.record FROM window_changes c JOIN records r ON r.id = c.record"
                " WHERE c.window = ? AND c.settled = 0 ORDER BY r.sequence",
                (window,),
            ).fetchall()
        return list(_readable(line for (line,) in rows))

    def stored_writes(self, window: str, last: str) -> frozenset[str]:
        """Return the names of all writes that were stored in a window, of which `last` is the last one."""
        with self._ledger.transaction() as connection:
            rows = connection.execute(
                "SELECT write_, after FROM window_changes WHERE window = ? AND write_ <> ''", (window,)
            ).fetchall()
        before: dict[str, str] = dict(rows)
        stored: set[str] = set()
        while last and last not in stored:
            stored.add(last)
            last = before.get(last, "")
        return frozenset(stored)

    def settle(self, records: Sequence[Record], *, given_up: bool = False) -> None:
        """Note that these records are told, or given up until their window turns up again."""
        with self._ledger.transaction() as connection:
            connection.executemany(
                "UPDATE window_changes SET settled = ? WHERE record = ?",
                [(2 if given_up else 1, record.id) for record in records],
            )

    def put(self, window: str, *, state: State, issue: str = "", until: str = "", outcome: str = "") -> None:
        """Note where a window stands; what is empty leaves what is known."""
        with self._ledger.transaction() as connection:
            connection.execute(
                "UPDATE windows SET state = ?, issue = CASE ? WHEN '' THEN issue ELSE ? END,"
                " until = CASE ? WHEN '' THEN until ELSE ? END, outcome = CASE ? WHEN '' THEN outcome ELSE ? END"
                " WHERE id = ?",
                (state, issue, issue, until, until, outcome, outcome, window),
            )


def _readable(lines: Iterable[bytes]) -> Iterator[Record]:
    """Yield the records; one that somebody spoiled is left out here, and found by `driftgate audit verify`."""
    for line in lines:
        with suppress(RecordsError):
            yield decode(line)


def _note(connection: sqlite3.Connection, record: Record, now: str) -> None:
    _insert(
        connection,
        Window(
            id=record.window,
            resource=GroupVersionResource(group=record.group, version=record.version, resource=record.resource),
            ref=ObjectRef(group=record.group, kind=record.kind, namespace=record.namespace, name=record.name),
            by=record.user,
            why=record.ask,
            until=record.until,
            state=State.PENDING,
            since=now,
        ),
    )
    connection.execute(
        "UPDATE windows SET why = ? WHERE id = ? AND why = '' AND ? <> ''", (record.ask, record.window, record.ask)
    )
    connection.execute(
        "INSERT OR IGNORE INTO window_changes VALUES (?, ?, 0, ?, ?)",
        (record.id, record.window, record.write, record.after_write),
    )
    # A window that was given up or closed is looked at again when something granted in it turns up later.
    connection.execute(
        "UPDATE windows SET state = 'pending', since = ? WHERE id = ? AND state IN ('void', 'closed')",
        (now, record.window),
    )


def _insert(connection: sqlite3.Connection, window: Window) -> None:
    connection.execute(
        f"INSERT OR IGNORE INTO windows ({_COLUMNS}) VALUES ({', '.join('?' * 14)})",  # noqa: S608 -- our own names
        (
            *(window.id, window.resource.group, window.resource.version, window.resource.resource),
            *(window.ref.kind, window.ref.namespace, window.ref.name),
            *(window.by, window.why, window.until, window.state, window.since, window.issue),
            window.outcome,
        ),
    )


def _window(row: Sequence[str]) -> Window:
    cells: Iterator[str] = iter(row)
    id_, group, version, resource, kind, namespace, name, by, why, until, state, since, issue, outcome = cells
    return Window(
        id=id_,
        resource=GroupVersionResource(group=group, version=version, resource=resource),
        ref=ObjectRef(group=group, kind=kind, namespace=namespace, name=name),
        by=by,
        why=why,
        until=until,
        state=State(state),
        since=since,
        issue=issue,
        outcome=outcome,
    )
