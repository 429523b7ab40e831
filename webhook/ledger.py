"""The ledger: every record in one SQLite file, hash-chained, searched by people and written by one controller.

Each row carries a hash over the one before it, so a row that was changed, taken out, put in or moved is found:

    hash = SHA-256( hash of the row before, 32 bytes (zeros before the first row)
                  + sequence number, 8 bytes, big-endian
                  + the record's JSON, exactly as it was written )

`head` holds number and hash of the last row: that is how the removal of the last rows is found. What all this does not
withstand: whoever can write the whole file can compute every hash again, head included, and can drop what waits in
the outbox. Only a hash that was noted elsewhere helps then; `driftgate audit verify` prints it for that, and signed
checkpoints are to come.

Rows are added behind the head or the last row, whichever is later, and chained to the head: adding neither covers up a
break nor stops for one. Easy to get wrong: nothing but SQLite may open the file while it is in use (closing it would
drop SQLite's own locks), so the lock that keeps a second writer out is a file beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import sqlite3
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from webhook.errors import RecordsError
from webhook.outbox import read_segment, retire, segments
from webhook.record import Record, decode, encode, new_ulid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from webhook.outbox import Line

GENESIS = "0" * 64
"""The hash that stands before the first row."""

_APPLICATION = 0x64726674  # "drft" in the file's header
_VERSION = 1
_PORTION = 500  # lines of a segment that one transaction takes in
_BUSY = 5.0  # seconds to wait for another connection's lock

_COLUMNS = ("time", "user", "namespace", "kind", "name", "managed_by", "verdict", "reason", "event", "window")
"""What is searched: columns with the names, and the values, of the record's fields."""

_SEARCHED = ("user", "namespace", "kind", "name", "verdict", "reason", "event", "window")  # by equality
_INDEXES = "\n".join(f'CREATE INDEX records_by_{name} ON records ("{name}", "time");' for name in _SEARCHED)

_SCHEMA = f"""
CREATE TABLE records (
    sequence INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    record BLOB NOT NULL,
    hash TEXT NOT NULL,
    "time" TEXT NOT NULL,
    "user" TEXT NOT NULL,
    "namespace" TEXT NOT NULL,
    "kind" TEXT NOT NULL,
    "name" TEXT NOT NULL,
    "managed_by" TEXT NOT NULL,
    "verdict" TEXT NOT NULL,
    "reason" TEXT NOT NULL,
    "event" TEXT NOT NULL,
    "window" TEXT NOT NULL
);
CREATE INDEX records_by_time ON records ("time");
{_INDEXES}
CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), count INTEGER NOT NULL, hash TEXT NOT NULL);
INSERT INTO head VALUES (1, 0, '{GENESIS}');
CREATE TABLE positions (segment TEXT PRIMARY KEY, "offset" INTEGER NOT NULL, unreadable INTEGER NOT NULL);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""  # noqa: S608 -- constants
_NAMES = ", ".join(f'"{name}"' for name in ("sequence", "id", "record", "hash", *_COLUMNS))
_INSERT = f"INSERT INTO records ({_NAMES}) VALUES ({', '.join('?' * (4 + len(_COLUMNS)))})"  # noqa: S608 -- constants
_SELECT_ALL = f"SELECT {_NAMES} FROM records ORDER BY sequence"  # noqa: S608 -- constants

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which records are looked for; None: any. `namespace=""` is what has no namespace.

    `since` is included, `until` is not. `tool` is the beginning of `managed_by`; capitals and blanks don't count, so
    that `argocd` finds `Argo CD application "shop"`.
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


EVERYTHING = Filter()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One record in the ledger: its number, the record, the very bytes that were hashed, and the hash."""

    sequence: int
    record: Record
    line: bytes
    hash: str


Rows = list[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What reading the whole chain found. `count` and `hash` tell how far it is intact."""

    count: int
    hash: str
    sequence: int | None = None
    """The first bad row; None if the chain is intact, or no row can be named."""
    problem: str = ""
    """What is wrong; empty if the chain is intact."""

    @property
    def intact(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problem


def chain_hash(previous: str, sequence: int, line: bytes) -> str:
    """Return the hash, in hex, of row `sequence` with the record `line` behind the row whose hash is `previous`."""
    return hashlib.sha256(bytes.fromhex(previous) + sequence.to_bytes(8, "big") + line).hexdigest()


class LedgerReader:
    """A ledger that is only read, while the controller may be writing it. May be used by several threads."""

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
        """Return number and hash of the last row. Raises RecordsError."""
        with self._lock, self._explained():
            return _head(self._connection)

    def list(self, wanted: Filter = EVERYTHING, *, limit: int = 50, newest_first: bool = True) -> Rows:
        """Return the rows that fit, by time, at most `limit` of them. Raises RecordsError."""
        conditions, values = _conditions(wanted)
        where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
        order = "DESC" if newest_first else "ASC"
        query = f'SELECT sequence, record, hash FROM records {where}ORDER BY "time" {order}, sequence {order} LIMIT ?'  # noqa: S608 -- values are bound
        with self._lock, self._explained():
            found = self._connection.execute(query, (*values, limit)).fetchall()
        return [_row(*columns) for columns in found]

    def show(self, id_: str) -> Row | None:
        """Return the record with this id, or the only one whose id begins so; None if there is none.

        Raises RecordsError if several begin so.
        """
        prefix = id_.strip().upper()
        query = "SELECT sequence, record, hash FROM records WHERE id >= ? AND id < ? ORDER BY id LIMIT 2"
        with self._lock, self._explained():
            found = self._connection.execute(query, (prefix, prefix + "\U0010ffff")).fetchall() if prefix else []
        rows = [_row(*columns) for columns in found]
        if len(rows) > 1 and rows[0].record.id != prefix:
            raise RecordsError(f"several records begin with {prefix}, {rows[0].record.id} for one: give more of the id")
        return rows[0] if rows else None

    def verify(self) -> Verification:
        """Read the whole chain, row by row, and say where it breaks first. Raises RecordsError if it can't be read."""
        with self._scope("BEGIN") as connection:
            return _verified(connection)

    def _connect(self) -> sqlite3.Connection:
        try:
            there = self._path.is_file()
        except OSError as error:
            raise RecordsError(f"the ledger {self._path} can't be read: {error.strerror}") from error
        if not there:
            raise RecordsError(
                f"there is no ledger {self._path}: the controller makes it when it first starts."
                " Start it, or name the ledger's file"
            )
        with _opened(f"{self._path.absolute().as_uri()}?mode=ro{self._immutable()}") as connection:
            self._check_schema(connection)
            return connection

    def _immutable(self) -> str:
        """A copy in a folder that we may not write: SQLite can't make its index of the WAL there, and needs none."""
        wal = self._path.with_name(self._path.name + "-wal")
        return "" if wal.exists() or os.access(self._path.parent, os.W_OK) else "&immutable=1"

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application != _APPLICATION:
            raise RecordsError(f"{self._path} is no ledger of driftgate: name the right file")
        if version > _VERSION:
            raise RecordsError(
                f"the ledger {self._path} was written by a newer driftgate (schema {version}, this one knows"
                f" {_VERSION}): use that version"
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
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
                if connection.in_transaction:  # SQLite itself rolls back on a full disk
                    connection.execute("ROLLBACK TO inner" if nested else "ROLLBACK")
                raise


class Ledger(LedgerReader):
    """The ledger as its one writer has it. Makes the file, and its folder, where they are not there yet."""

    def __init__(self, path: Path) -> None:
        """Open the ledger for writing. Raises RecordsError, also if somebody else writes it."""
        self._writer = _lock_out_others(path)
        try:
            super().__init__(path)
        except BaseException:
            os.close(self._writer)
            raise

    def close(self) -> None:
        """Let go of the file, and let another writer have it."""
        super().close()
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for several statements, all of them kept or none; `append` inside is part of it.

        Transactions may be nested; other threads wait. Don't commit, and don't use `executescript`, which does.
        Raises RecordsError for what SQLite refuses.
        """
        with self._scope("BEGIN IMMEDIATE") as connection:
            yield connection

    def append(self, records: Iterable[Record]) -> int:
        """Add records to the chain and return how many were new: one that is already there is not added again.

        Raises RecordsError, and adds none of them, if another record has the id of one.
        """
        with self.transaction() as connection:
            chain = _Chain(connection)
            added = sum(chain.add(record, encode(record)) for record in records)
            chain.save()
        return added

    def take_in(self, outbox: Path, *, now: datetime | None = None) -> int:
        """Move all that the folder `outbox` holds into the chain, each record once; return how many were new.

        How far each segment was read is kept in the same transaction as its rows, so a crash loses and doubles
        nothing. Lines that can't be read are reported as a record of their own, and their segment is kept aside.
        """
        taken = 0
        for segment in segments(outbox):
            while (added := self._take_portion(segment, now or datetime.now(UTC))) is not None:
                taken += added
            self._retire(segment)
        return taken

    def _take_portion(self, segment: Path, now: datetime) -> int | None:
        offset, unreadable = self._position(segment)
        portion = read_segment(segment, offset, _PORTION)
        if not portion.lines:
            return None
        with self.transaction() as connection:
            chain = _Chain(connection)
            count, bad = chain.count, [line for line in portion.lines if not _taken(chain, line)]
            added = chain.count - count
            if bad:
                report = _report(segment, bad, now)
                chain.add(report, encode(report))
                _log.error("line.refused", extra={"segment": segment.name, "offset": bad[0].offset, "lines": len(bad)})
            chain.save()
            connection.execute(
                "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)",
                (segment.name, portion.end, unreadable + len(bad)),
            )
        return added

    def _position(self, segment: Path) -> tuple[int, int]:
        """Return how far the segment was read, and how many of its lines could not be."""
        query = 'SELECT "offset", unreadable FROM positions WHERE segment = ?'
        with self._lock, self._explained():
            offset, unreadable = self._connection.execute(query, (segment.name,)).fetchone() or (0, 0)
        return offset, unreadable

    def _retire(self, segment: Path) -> None:
        offset, unreadable = self._position(segment)
        if retire(segment, offset, keep=unreadable > 0) and offset > 0:
            with self.transaction() as connection:
                connection.execute("DELETE FROM positions WHERE segment = ?", (segment.name,))

    def _connect(self) -> sqlite3.Connection:
        _make_file(self._path)
        with _opened(self._path.absolute().as_uri()) as connection:
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            self._check_schema(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            return connection


class _Chain:
    """The end of the chain, inside one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        head, self._hash = _head(connection)
        (last,) = connection.execute("SELECT max(sequence) FROM records").fetchone()
        self.count: int = max(head, last or 0)

    def add(self, record: Record, line: bytes) -> bool:
        """Add one; False if it is there already. Raises RecordsError if its id is another record's."""
        known = self._connection.execute("SELECT record FROM records WHERE id = ?", (record.id,)).fetchone()
        if known is not None:
            if known != (line,):
                raise RecordsError(f"another record in the ledger has the id {record.id}: it is not replaced")
            return False
        self.count += 1
        self._hash = chain_hash(self._hash, self.count, line)
        values = [getattr(record, column) for column in _COLUMNS]
        self._connection.execute(_INSERT, (self.count, record.id, line, self._hash, *values))
        return True

    def save(self) -> None:
        self._connection.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?)", (self.count, self._hash))


def _head(connection: sqlite3.Connection) -> tuple[int, str]:
    """Return number and hash of the last row; those of an empty chain if somebody wrote nonsense there."""
    match connection.execute("SELECT count, hash FROM head").fetchone():
        case (int(count), str(found)) if 0 <= count < 1 << 62 and re.fullmatch("[0-9a-f]{64}", found):
            return count, found
    return 0, GENESIS


def _taken(chain: _Chain, line: Line) -> bool:
    """Add what the line holds; False if it can't be had, or would replace another record."""
    if line.record is None:
        return False
    try:
        chain.add(line.record, line.content)
    except RecordsError:
        return False
    return True


def _report(segment: Path, bad: list[Line], now: datetime) -> Record:
    return Record(
        id=new_ulid(),
        time=_print_time(now),
        event="outbox.corrupt",
        detail=f"{len(bad)} lines of the outbox segment {segment.name} can't be taken in, the first at byte"
        f" {bad[0].offset}: no record, or one whose id another has. The file is kept as {segment.name}.corrupt",
    )


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[sqlite3.Connection]:
    """Give a connection that is closed only if what is done with it fails."""
    connection = sqlite3.connect(uri, uri=True, timeout=_BUSY, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")  # the file may have been tampered with
        yield connection
    except BaseException:
        connection.close()
        raise


def _lock_out_others(path: Path) -> int:
    """Return the open lock file beside the ledger. Raises RecordsError if somebody else has it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RecordsError(
            f"another controller is writing the ledger {path}: stop that one, or give this one a ledger of its own"
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise _unwritable(path, error) from error
    return descriptor


def _make_file(path: Path) -> None:
    """Make an empty file that only we may read, if there is none; SQLite would make it readable for all."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> RecordsError:
    return RecordsError(
        f"the ledger {path} can't be written: {(error.strerror or str(error)).lower()}."
        f" Give user {os.geteuid()} a folder for it that has room and may be written"
    )


def _what_to_do(error: sqlite3.Error) -> str:
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_FULL:
            return ". Make room on its disk; what waits in the outbox is not lost"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return f". Let user {os.geteuid()} read and write the file and its folder"
        case sqlite3.SQLITE_BUSY:
            return ". Something else keeps it locked: look for a program that has it open, and try again"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return ". Keep the file as it is for inquiry, and put back a copy"
        case _:
            return ""


def _conditions(wanted: Filter) -> tuple[list[str], list[str]]:
    """Return the filter as SQL conditions and their values."""
    equal = {
        "user": wanted.user,
        "namespace": wanted.namespace,
        "kind": wanted.kind,
        "name": wanted.name,
        "verdict": wanted.verdict,
        "reason": wanted.reason,
        "event": wanted.event,
        "window": wanted.window,
    }
    found = [(f'"{column}" = ?', value) for column, value in equal.items() if value is not None]
    if wanted.since is not None:
        found.append(('"time" >= ?', _print_time(wanted.since)))
    if wanted.until is not None:
        found.append(('"time" < ?', _print_time(wanted.until)))
    if wanted.tool is not None:
        beginning = wanted.tool.replace(" ", "").lower()
        found.append(("instr(lower(replace(managed_by, ' ', '')), ?) = 1", beginning))
    return [condition for condition, _ in found], [value for _, value in found]


def _print_time(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _row(sequence: int, line: object, row_hash: str) -> Row:
    try:
        if isinstance(line, bytes):
            return Row(sequence=sequence, record=decode(line), line=line, hash=row_hash)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    raise RecordsError(f"row {sequence} of the ledger holds no record: `driftgate audit verify` says more")


def _verified(connection: sqlite3.Connection) -> Verification:
    count, previous = 0, GENESIS
    try:
        head = _head(connection)
        for sequence, *columns in connection.execute(_SELECT_ALL):
            bad, problem = _break_at(sequence, columns, previous, expected=count + 1, last=head[0])
            if problem:
                return Verification(count=count, hash=previous, sequence=bad, problem=problem)
            count, previous = sequence, str(columns[2])
        if head != (count, previous):
            return _bad_head(count, previous, head)
        (health,) = connection.execute("PRAGMA integrity_check(1)").fetchone()  # its indexes too: `list` relies on them
    except sqlite3.DatabaseError as error:
        health = str(error)
    problem = "" if health == "ok" else f"the file is damaged: {health}"
    return Verification(count=count, hash=previous, problem=problem)


def _bad_head(count: int, previous: str, head: tuple[int, str]) -> Verification:
    if head[0] > count:
        problem = f"the last rows were removed: the head names row {head[0]} as the last, and it is row {count}"
    else:
        problem = f"the head does not name row {count} with its hash: one of them was changed"
    return Verification(count=count, hash=previous, sequence=count + 1 if head[0] > count else count, problem=problem)


def _break_at(sequence: int, columns: list[object], previous: str, *, expected: int, last: int) -> tuple[int, str]:
    """Return the number of the bad row and what is wrong with it; an empty text if nothing is."""
    if sequence > expected:
        return expected, f"row {expected} is missing: row {sequence} comes instead"
    if sequence < expected:
        return sequence, f"row {sequence} was put in: rows begin with 1"
    if sequence > last:
        return sequence, f"row {sequence} was put in: the head names row {last} as the last"
    id_, line, row_hash, *indexed = columns
    if not isinstance(line, bytes) or row_hash != chain_hash(previous, sequence, line):
        return sequence, (
            f"row {sequence} (record {id_}) does not follow from row {sequence - 1}: its content or its hash was"
            " changed, or it is another row's"
        )
    return sequence, _disagreement(sequence, line, id_, indexed)


def _disagreement(sequence: int, line: bytes, id_: object, indexed: list[object]) -> str:
    record = _row(sequence, line, "").record
    for column, value in zip(("id", *_COLUMNS), (id_, *indexed), strict=True):
        if value != getattr(record, column):
            return f'row {sequence} (record {record.id}): the column "{column}" was changed, its record says otherwise'
    return ""
