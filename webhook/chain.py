"""The hash chain of the ledger: how a row follows from the one before it, and how a break is found.

    hash = SHA-256( hash of the row before, 32 bytes (zeros before the first row)
                  + sequence number, 8 bytes, big-endian
                  + the record's JSON, exactly as it was written )

So a row that was changed, taken out, put in or moved is found. `head` holds number and hash of the last row: that is
how the removal of the last rows is found. What all this does not withstand: whoever can write the whole file can
compute every hash again, head included, and can drop what still waits in the outbox. Only a hash that was noted
elsewhere helps then; `driftgate audit verify` prints it for that, and signed checkpoints are to come.

Easy to get wrong: rows are added behind the head or the last row, whichever is later, and chained to the head. So
adding neither covers up a break that is there, nor stops because of one. Who opens the file is not known here.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

from webhook.errors import RecordsError
from webhook.record import Record, decode

if TYPE_CHECKING:
    from collections.abc import Sequence

GENESIS = "0" * 64
"""The hash that stands before the first row."""

COLUMNS = ("time", "user", "namespace", "kind", "name", "managed_by", "verdict", "reason", "event", "window")
"""What is searched: columns with the names, and the values, of the record's fields."""

_BY_VALUE = ("user", "namespace", "name", "verdict", "reason", "event", "window")
_TEXTS = ", ".join(f'"{column}" TEXT NOT NULL' for column in COLUMNS)

SCHEMA = (
    "CREATE TABLE records (sequence INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, record BLOB NOT NULL,"
    f" hash TEXT NOT NULL, {_TEXTS})",
    'CREATE INDEX records_by_time ON records ("time")',
    *(f'CREATE INDEX records_by_{column} ON records ("{column}", "time")' for column in _BY_VALUE),
    'CREATE INDEX records_by_kind ON records ("kind" COLLATE NOCASE, "time")',
    "CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), count INTEGER NOT NULL, hash TEXT NOT NULL)",
    f"INSERT INTO head VALUES (1, 0, '{GENESIS}')",  # noqa: S608 -- a constant
)
"""The statements that make an empty chain."""

_NAMES = ", ".join(f'"{name}"' for name in ("sequence", "id", "record", "hash", *COLUMNS))
_INSERT = f"INSERT INTO records ({_NAMES}) VALUES ({', '.join('?' * (4 + len(COLUMNS)))})"  # noqa: S608 -- constants
_SELECT = f"SELECT {_NAMES} FROM records ORDER BY sequence"  # noqa: S608 -- constants


def chain_hash(previous: str, sequence: int, line: bytes) -> str:
    """Return the hash, in hex, of row `sequence` with the record `line`, behind the row whose hash is `previous`."""
    return hashlib.sha256(bytes.fromhex(previous) + sequence.to_bytes(8, "big") + line).hexdigest()


def read_head(connection: sqlite3.Connection) -> tuple[int, str]:
    """Return number and hash of the last row; those of an empty chain if nonsense stands there."""
    match connection.execute("SELECT count, hash FROM head").fetchone():
        case (int(count), str(found)) if 0 <= count < 1 << 62 and re.fullmatch("[0-9a-f]{64}", found):
            return count, found
    return 0, GENESIS


class Chain:
    """The end of the chain, inside one transaction: `add`, then `save` once."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        head, self._hash = read_head(connection)
        (last,) = connection.execute("SELECT max(sequence) FROM records").fetchone()
        self._count: int = max(head, last or 0)

    def add(self, record: Record, line: bytes) -> bool:
        """Add `record`, whose JSON is `line`; False if it is there already.

        Raises RecordsError if another record has its id.
        """
        known = self._connection.execute("SELECT record FROM records WHERE id = ?", (record.id,)).fetchone()
        if known is not None:
            if known != (line,):
                raise RecordsError(f"another record in the ledger has the id {record.id}: it is not replaced")
            return False
        self._count += 1
        self._hash = chain_hash(self._hash, self._count, line)
        values = (getattr(record, column) for column in COLUMNS)
        self._connection.execute(_INSERT, (self._count, record.id, line, self._hash, *values))
        return True

    def save(self) -> None:
        """Write down where the chain ends now."""
        self._connection.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?)", (self._count, self._hash))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What reading the whole chain found: up to row `count`, whose hash is `hash`, it is intact."""

    count: int
    hash: str
    sequence: int | None = None
    """The first bad row; None if there is none, or none can be named."""
    problem: str = ""
    """What is wrong; empty if the chain is intact."""

    @property
    def intact(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problem


def verify(connection: sqlite3.Connection) -> Verification:
    """Read every row, in order, and return where the chain breaks first. To be called inside a transaction.

    What SQLite keeps beside the rows (its indexes, which searching relies on) is checked last.
    """
    count, previous = 0, GENESIS
    try:
        last, last_hash = read_head(connection)
        for sequence, *cells in connection.execute(_SELECT):
            bad, problem = _break_at(sequence, cells, previous, expected=count + 1, last=last)
            if problem:
                return Verification(count=count, hash=previous, sequence=bad, problem=problem)
            count, previous = sequence, str(cells[2])
        if (last, last_hash) != (count, previous):
            return _not_at_head(count, previous, last)
        (health,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        health = str(error)
    problem = "" if health == "ok" else f"the file itself is damaged: {health}"
    return Verification(count=count, hash=previous, problem=problem)


def _break_at(sequence: int, cells: Sequence[object], previous: str, *, expected: int, last: int) -> tuple[int, str]:
    """Return the number of the bad row and what is wrong with it; an empty text if it is sound."""
    if sequence > expected:
        return expected, f"row {expected} is missing: row {sequence} comes instead"
    if sequence < expected:
        return sequence, f"row {sequence} was put in: rows are counted from 1"
    if sequence > last:
        return sequence, f"row {sequence} was put in: the head names row {last} as the last"
    id_, line, row_hash, *indexed = cells
    if not isinstance(line, bytes) or row_hash != chain_hash(previous, sequence, line):
        return sequence, (
            f"row {sequence} (record {id_}) does not follow from the one before: its content or its hash was changed,"
            " or it is another row's"
        )
    return sequence, _disagreement(sequence, line, (id_, *indexed))


def _disagreement(sequence: int, line: bytes, cells: Sequence[object]) -> str:
    """Return which column says otherwise than the record; an empty text if none does."""
    try:
        record = decode(line)
    except RecordsError:
        return f"row {sequence} holds no record"
    for column, value in zip(("id", *COLUMNS), cells, strict=True):
        if value != getattr(record, column):
            return f'row {sequence} (record {record.id}): its column "{column}" was changed, the record says otherwise'
    return ""


def _not_at_head(count: int, previous: str, last: int) -> Verification:
    if last > count:
        problem = f"the last rows are missing: the head names row {last} as the last, the last one here is row {count}"
        return Verification(count=count, hash=previous, sequence=count + 1, problem=problem)
    problem = f"the head names row {count} with another hash: the head was changed, or the rows were made anew"
    return Verification(count=count, hash=previous, sequence=count, problem=problem)
