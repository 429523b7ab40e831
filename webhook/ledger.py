"""The ledger: every record, in one SQLite file that is searched by people and written by one controller.

Each row carries a hash over the one before it, so a row that was changed, taken out, put in or moved is found:

    hash = SHA-256(hash of the row before, 32 bytes; 64 zeros in hex before the first
                   + sequence number, 8 bytes, big-endian
                   + the record's JSON, exactly as it was written)

`head` holds number and hash of the last row, which is how the removal of the last rows is found. What this does not
withstand: whoever can write the whole file can compute every hash again, head included. Against that only a hash
that was noted elsewhere helps: `driftgate audit verify` prints it, signed checkpoints are to come.

Rows are added after the head or the last row, whichever is later, and hashed from the head: adding never covers up a
break that is there, and never stops for one. Easy to get wrong: the file must not be opened or locked by anything but
SQLite while it is in use (that would drop SQLite's own locks), so the writer's lock is a file beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
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
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from webhook.outbox import Line

GENESIS = "0" * 64
"""What stands for the hash before the first row."""

_APPLICATION = 0x64726674  # "drft", in the header of the file
_VERSION = 1
_PORTION = 500
"""Lines of a segment that are taken in by one transaction."""
_BUSY = 5.0
"""Seconds to wait for another connection's lock."""

_COLUMNS = ("time", "user", "namespace", "kind", "name", "managed_by", "verdict", "reason", "event", "window")
_INDEXED = tuple(column for column in _COLUMNS if column not in {"time", "managed_by"})

_SCHEMA = (
    "CREATE TABLE records (sequence INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, record BLOB NOT NULL,"
    f" hash TEXT NOT NULL, {', '.join(f'"{column}" TEXT NOT NULL' for column in _COLUMNS)})",
    'CREATE INDEX records_by_time ON records ("time")',
    *(f'CREATE INDEX records_by_{column} ON records ("{column}", "time")' for column in _INDEXED),
    "CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), count INTEGER NOT NULL, hash TEXT NOT NULL)",
    f"INSERT INTO head VALUES (1, 0, '{GENESIS}')",
    "CREATE TABLE positions (segment TEXT PRIMARY KEY, offset INTEGER NOT NULL, unreadable INTEGER NOT NULL)",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {_VERSION}",
)
_INSERT = (
    f'INSERT INTO records (sequence, id, record, hash, {", ".join(f'"{column}"' for column in _COLUMNS)})'  # noqa: S608 -- our own names
    f" VALUES (?, ?, ?, ?{', ?' * len(_COLUMNS)})"
)
