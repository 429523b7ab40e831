"""The ledger: all records in one SQLite file, written by one controller and searched by people.

How the rows are chained stands in `chain.py`. Readers open the file read-only and see a consistent state while the
controller writes (WAL). How far each segment of the outbox was read is kept here, in the same transaction as the
rows: a crash neither loses a record nor doubles one.

Easy to get wrong: nothing but SQLite may open the file while it is in use, since closing it would drop SQLite's own
locks in this process. So the lock that keeps a second writer out is a file beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from webhook.chain import SCHEMA, Chain, Verification, read_head, verify
from webhook.errors import RecordsError
from webhook.logs import log
from webhook.outbox import SET_ASIDE, read_segment, retire, segments
from webhook.record import Record, decode, encode, new_ulid, print_millis

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from webhook.outbox import Line

_APPLICATION = 0x64726674  # "drft" in the file's header
_VERSION = 1
_PORTION = 500  # lines of a segment that one transaction takes in
_BUSY = 5.0  # seconds to wait for another connection's lock

_DAMAGED = ". Keep the file as it is for inquiry, and put back a copy"

_SCHEMA = (
    *SCHEMA,
    'CREATE TABLE positions (segment TEXT PRIMARY KEY, "offset" INTEGER NOT NULL, refused INTEGER NOT NULL)',
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {_VERSION}",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which records are looked for; None: any. `namespace=""` finds what has no namespace.

    `since` is included, `until` is not. Capitals don't count in `kind`. `tool` is the beginning of `managed_by`, where
    neither capitals nor blanks count: `argocd` finds `Argo CD application "shop"`.
    """

    since: datetime | None = None
    until: datetime | None = None
    user: str | None = None
    namespace: str | None = None
    kind: str | None = None
    name: str | None = None
    tool: str | None = None
    verdict: str | None = None
    reason: str | None = None
    event: str | None = None
    window: str | None = None


ALL = Filter()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row: its number, the record, the very bytes that were hashed, and the hash."""

    sequence: int
    record: Record
    line: bytes
    hash: str


Rows = list[Row]  # in a class with a method `list` the word means that method


class LedgerReader:
    """The ledger for those who only read. One may be used by several threads."""

    def __init__(self, path: Path) -> None:
        """Open the ledger. Raises RecordsError if it is not there, is none, or is newer than this program."""
        self._path = path
        self._lock = threading.RLock()
        with self._explained():
            self._connection = self._connect()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def head(self) -> tuple[int, str]:
        """Return number and hash of the last row; (0, zeros) if there is none. Raises RecordsError."""
        with self._lock, self._explained():
            return read_head(self._connection)

    def list(self, wanted: Filter = ALL, *, limit: int = 50, newest_first: bool = True) -> Rows:
        """Return at most `limit` of the rows that fit, ordered by the records' time. Raises RecordsError."""
        conditions, values = _conditions(wanted)
        where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
        order = "DESC" if newest_first else "ASC"
        query = f'SELECT sequence, record, hash FROM records {where}ORDER BY "time" {order}, sequence {order} LIMIT ?'  # noqa: S608 -- values are bound
        with self._lock, self._explained():
            found = self._connection.execute(query, (*values, limit)).fetchall()
        return [_row(*cells) for cells in found]

    def show(self, id_: str) -> Row | None:
        """Return the record with this id, or the only one whose id begins so; None if there is none.

        Raises RecordsError if several begin so.
        """
        prefix = id_.strip().upper()
        query = "SELECT sequence, record, hash, id FROM records WHERE id >= ? AND id < ? ORDER BY id LIMIT 2"
        with self._lock, self._explained():
            found = self._connection.execute(query, (prefix, prefix + "\U0010ffff")).fetchall() if prefix else []
        if len(found) > 1 and found[0][3] != prefix:
            raise RecordsError(f"several records begin with {prefix!r}, {found[0][3]} is one: give more of the id")
        return _row(*found[0][:3]) if found else None

    def verify(self) -> Verification:
        """Read the whole chain and say where it breaks first. Raises RecordsError if it can't be read."""
        with self._scope("BEGIN") as connection:
            return verify(connection)

    def _connect(self) -> sqlite3.Connection:
        try:
            self._path.stat()
        except FileNotFoundError:
            raise RecordsError(
                f"there is no ledger {self._path}: the controller makes it when it first starts."
                " Start it (`driftgate controller`, or `driftgate serve`), or name the file where the ledger is"
            ) from None
        except OSError as error:
            raise RecordsError(f"the ledger {self._path} can't be read: {_reason(error)}") from error
        with _opened(f"{self._path.absolute().as_uri()}?mode=ro{self._immutable()}") as connection:
            self._check_schema(connection)
            return connection

    def _immutable(self) -> str:
        """A copy in a folder that we may not write: SQLite can't put its index of the WAL there, and needs none."""
        wal = self._path.with_name(self._path.name + "-wal")
        return "" if wal.exists() or os.access(self._path.parent, os.W_OK) else "&immutable=1"

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application != _APPLICATION:
            raise RecordsError(f"{self._path} is no ledger of driftgate: name the file where the ledger is")
        if version > _VERSION:
            raise RecordsError(
                f"the ledger {self._path} was written by a newer driftgate (schema {version}, this one knows"
                f" {_VERSION}): use that version"
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter where a damaged schema names a column
            raise RecordsError(f"the ledger {self._path} can't be used: {error}{_what_to_do(error)}") from error

    @contextlib.contextmanager
    def _scope(self, begin: str) -> Iterator[sqlite3.Connection]:
        """One transaction, or a savepoint inside the one that this thread is in."""
        with self._lock, self._explained():
            connection = self._connection
            nested = connection.in_transaction
            connection.execute("SAVEPOINT inner" if nested else begin)
            try:
                yield connection
                connection.execute("RELEASE inner" if nested else "COMMIT")
            except BaseException:
                if connection.in_transaction:  # SQLite itself rolls back when the disk is full
                    for statement in ("ROLLBACK TO inner", "RELEASE inner") if nested else ("ROLLBACK",):
                        connection.execute(statement)
                raise


class Ledger(LedgerReader):
    """The ledger for its one writer. Makes the file, and its folder, where they are not there yet."""

    def __init__(self, path: Path) -> None:
        """Open the ledger for writing. Raises RecordsError, also if somebody else is writing it."""
        self._writer: int | None = _lock_out_others(path)
        try:
            super().__init__(path)
        except BaseException:
            self._let_others_in()
            raise

    def close(self) -> None:
        """Let go of the file, and let another writer have it."""
        super().close()
        self._let_others_in()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for several statements: all of them are kept, or none if the block raises.

        `append` inside is part of it, and transactions may be nested; other threads wait. Statements must not commit,
        which `executescript` does. What SQLite refuses is raised as RecordsError.
        """
        with self._scope("BEGIN IMMEDIATE") as connection:
            yield connection

    def append(self, records: Iterable[Record]) -> int:
        """Add records and return how many were new: one that is there already is not added again.

        Raises RecordsError, and adds none of them, if another record has the id of one.
        """
        with self.transaction() as connection:
            chain = Chain(connection)
            added = sum(chain.add(record, encode(record)) for record in records)
            chain.save()
        return added

    def take_in(self, directory: Path, *, now: datetime | None = None) -> int:
        """Move what the outbox in `directory` holds into the ledger, each record once; return how many were new.

        Lines that can't be taken in are reported by a record of their own (`outbox.corrupt`, at the time `now`), and
        their segment is set aside instead of being removed. Raises RecordsError.
        """
        taken = 0
        failures: list[RecordsError] = []
        for segment in segments(directory):
            try:
                while (added := self._take_portion(segment, now or datetime.now(UTC))) is not None:
                    taken += added
                self._retire(segment)
            except RecordsError as failure:  # one bad segment does not hold up the others
                failures.append(failure)
        if failures:
            raise failures[0]
        return taken

    def _take_portion(self, segment: Path, now: datetime) -> int | None:
        """Take in the next lines in one transaction and return how many were new; None if there are no more."""
        offset, refused = self._position(segment)
        portion = read_segment(segment, offset, _PORTION)
        if not portion.lines:
            return None
        with self.transaction() as connection:
            chain = Chain(connection)
            outcomes = [_taken(chain, line) for line in portion.lines]
            bad = [line for line, outcome in zip(portion.lines, outcomes, strict=True) if outcome is None]
            if bad:
                report = _report(segment, bad, now)
                chain.add(report, encode(report))
            chain.save()
            position = (segment.name, portion.end, refused + len(bad))
            connection.execute("INSERT OR REPLACE INTO positions VALUES (?, ?, ?)", position)
        if bad:
            log("segment.refused", segment=segment.name, offset=bad[0].offset, lines=len(bad))
        return outcomes.count(True)

    def _position(self, segment: Path) -> tuple[int, int]:
        """Return how far the segment was read, and how many of its lines were refused."""
        query = 'SELECT "offset", refused FROM positions WHERE segment = ?'
        with self._lock, self._explained():
            offset, refused = self._connection.execute(query, (segment.name,)).fetchone() or (0, 0)
        return offset, refused

    def _retire(self, segment: Path) -> None:
        offset, refused = self._position(segment)
        if retire(segment, offset, keep=refused > 0) and offset > 0:
            with self.transaction() as connection:
                connection.execute("DELETE FROM positions WHERE segment = ?", (segment.name,))

    def _connect(self) -> sqlite3.Connection:
        _make_file(self._path)
        with _opened(self._path.absolute().as_uri()) as connection:
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                connection.executescript(f"BEGIN IMMEDIATE; {';'.join(_SCHEMA)}; COMMIT")
            self._check_schema(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            return connection

    def _let_others_in(self) -> None:
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None


def _conditions(wanted: Filter) -> tuple[Sequence[str], Sequence[str]]:
    """Return the filter as SQL conditions and the values they are bound to."""
    equal = {
        "user": wanted.user,
        "namespace": wanted.namespace,
        "name": wanted.name,
        "verdict": wanted.verdict,
        "reason": wanted.reason,
        "event": wanted.event,
        "window": wanted.window,
    }
    found = {f'"{column}" = ?': value for column, value in equal.items() if value is not None}
    if wanted.kind is not None:
        found['"kind" = ? COLLATE NOCASE'] = wanted.kind
    if wanted.since is not None:
        found['"time" >= ?'] = print_millis(wanted.since)
    if wanted.until is not None:
        found['"time" < ?'] = print_millis(wanted.until)
    if wanted.tool is not None:
        found["instr(lower(replace(managed_by, ' ', '')), ?) = 1"] = wanted.tool.replace(" ", "").lower()
    return tuple(found), tuple(found.values())


def _row(sequence: int, line: object, row_hash: str) -> Row:
    try:
        if isinstance(line, bytes):
            return Row(sequence=sequence, record=decode(line), line=line, hash=row_hash)
    except RecordsError:
        pass
    raise RecordsError(f"row {sequence} of the ledger holds no record: `driftgate audit verify` says more")


def _taken(chain: Chain, line: Line) -> bool | None:
    """Add what a line holds and tell whether it was new; None if there is no record, or its id is another's."""
    if line.record is None:
        return None
    try:
        return chain.add(line.record, line.content)
    except RecordsError:
        return None


def _report(segment: Path, bad: Sequence[Line], now: datetime) -> Record:
    return Record(
        id=new_ulid(),
        time=print_millis(now),
        event="outbox.corrupt",
        detail=f"{len(bad)} lines of the outbox segment {segment.name} can't be taken in, the first at byte"
        f" {bad[0].offset}: no record, or one with the id of another. Kept as {segment.name}{SET_ASIDE}",
    )


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[sqlite3.Connection]:
    """Give a connection that stays open, unless what is done with it here fails."""
    connection = sqlite3.connect(uri, uri=True, timeout=_BUSY, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")  # somebody may have put a view or a trigger into the file
        yield connection
    except BaseException:
        connection.close()
        raise


def _lock_out_others(path: Path) -> int:
    """Return the locked file beside the ledger. Raises RecordsError if somebody else has it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise _unwritable(path, error) from error
        raise RecordsError(
            f"another controller is writing the ledger {path}: stop that one, or give this one a ledger of its own"
        ) from None
    return descriptor


def _make_file(path: Path) -> None:
    """Make an empty file that only we may read, if there is none; SQLite would let everybody read it."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> RecordsError:
    return RecordsError(
        f"the ledger {path} can't be written: {_reason(error)}. Give user {os.geteuid()} a folder for it that may be"
        " written and has room"
    )


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _what_to_do(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return _DAMAGED
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_FULL:
            return ". Make room on its disk; what waits in the outbox is not lost"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return f". Let user {os.geteuid()} read and write the file and its folder"
        case sqlite3.SQLITE_BUSY:
            return ". Something else keeps it locked: find the program that has it open, and try again"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return _DAMAGED
        case _:
            return ""
