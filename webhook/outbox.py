"""The outbox: records on disk before the answer leaves, in append-only segment files of JSON Lines.

The writing side is `Outbox`: one thread, which writes whatever has come in the meantime and syncs it at once (group
commit). The reading side is three functions for the controller: `segments`, `read_segment`, `retire`. How far a segment
was read is not known here; the ledger keeps it, in the same transaction as the rows.

- Every writer has segments of its own, so workers and replicas may share a folder.
- A writer holds a flock on its segment: that, and nothing else, tells a reader that the writer still lives. So a
  segment counts only once it is locked and still has its name, since a reader may have been faster.
- Easy to get wrong: after a failed write or sync nothing is known about the end of a file. It is cut back to its last
  synced line and never written again; the next record begins a new segment.
- Nothing starts before the first `append`, and so nothing before a fork.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from webhook.errors import RecordsError
from webhook.logs import log
from webhook.record import Record, decode, encode, new_ulid

if TYPE_CHECKING:
    from pathlib import Path

SEGMENT_SIZE = 8 * 1024 * 1024
"""Bytes after which a segment is finished and the next one begun."""
MOST_WAITING = 8 * 1024 * 1024
"""Bytes of records that may wait for the disk; further ones are refused."""

SET_ASIDE = ".corrupt"
"""What is put behind the name of a segment with lines that can't be read."""

_SUFFIX = ".jsonl"
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_sync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class Outbox:
    """Keeps records in `directory`, which is made when the first one comes."""

    def __init__(self, directory: Path, *, segment_size: int = SEGMENT_SIZE, most_waiting: int = MOST_WAITING) -> None:
        self._directory = directory
        self._segment_size = segment_size
        self._most_waiting = most_waiting
        self._changed = threading.Condition()
        self._waiting: list[tuple[bytes, Future[None]]] = []
        self._waiting_size = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def append(self, record: Record) -> Future[None]:
        """Hand the record over; when the future is done, the record survives a crash.

        Never blocks and never raises: the future fails with RecordsError. It can't be cancelled, since a record that
        was handed over is kept even when nobody waits for it any longer.
        """
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()
        try:
            line = encode(record) + b"\n"
        except (msgspec.MsgspecError, TypeError, ValueError) as error:
            future.set_exception(RecordsError(f"record {record.id!r} can't be written as JSON: {error}"))
            return future
        with self._changed:
            if refusal := self._refusal(len(line)):
                future.set_exception(RecordsError(refusal))
                return future
            self._waiting.append((line, future))
            self._waiting_size += len(line)
            self._start_thread()
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """Write what waits, then end the thread. What is appended from now on is refused."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _refusal(self, size: int) -> str | None:
        if self._closed:
            return f"the outbox {self._directory} is closed: this process is ending, try again"
        if self._waiting and self._waiting_size + size > self._most_waiting:
            return (
                f"the outbox {self._directory} is full: {len(self._waiting)} records wait for the disk."
                " Look whether it is slow or hangs; what waits is still being written"
            )
        return None

    def _start_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():  # not alive: in the child of a fork
            self._thread = threading.Thread(target=self._write_batches, name="outbox", daemon=True)
            self._thread.start()

    def _write_batches(self) -> None:
        segments = _Segments(self._directory, self._segment_size)
        while batch := self._next_batch():
            failure = self._failure_of(segments, b"".join(line for line, _ in batch))
            for _, future in batch:
                if failure is None:
                    future.set_result(None)
                else:
                    future.set_exception(failure)
        segments.close()

    def _next_batch(self) -> list[tuple[bytes, Future[None]]]:
        """Wait for records and return them all; an empty list says that the outbox was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            batch, self._waiting, self._waiting_size = self._waiting, [], 0
            return batch

    def _failure_of(self, segments: _Segments, lines: bytes) -> RecordsError | None:
        try:
            segments.write(lines)
        except OSError as error:
            return RecordsError(f"the outbox {self._directory} can't keep records: {_what_to_do(error)}")
        except Exception as error:  # noqa: BLE001 -- the thread has to outlive whatever one batch meets
            return RecordsError(f"the outbox {self._directory} can't keep records: {error!r}")
        return None


def _what_to_do(error: OSError) -> str:
    what = (error.strerror or str(error)).lower()
    if error.errno in _NO_ROOM:
        return f"{what}. Make room on its disk; the next record is tried again"
    if error.errno in _NOT_ALLOWED:
        return f"{what}. Let user {os.geteuid()} write there; the next record is tried again"
    return f"{what}. Look at the folder and its disk; the next record is tried again"


class _Segments:
    """The files of one writer, one after the other."""

    def __init__(self, directory: Path, segment_size: int) -> None:
        self._directory = directory
        self._segment_size = segment_size
        self._current: _Segment | None = None

    def write(self, lines: bytes) -> None:
        """Write and sync; after an error the lines are not kept, and the next ones begin a new segment."""
        if self._current is not None and self._current.is_removed:
            self.close()  # what is written to a file without a name is lost
        if self._current is None:
            self._current = _Segment.create(self._directory)
        try:
            self._current.write(lines)
        except BaseException:
            self._current.cut_back()
            self.close()
            raise
        if self._current.size >= self._segment_size:
            self.close()

    def close(self) -> None:
        if self._current is not None:
            self._current.close()
            self._current = None


class _Segment:
    """One file, locked for as long as it is written."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self.size = 0
        """Bytes known to be on disk."""

    @classmethod
    def create(cls, directory: Path) -> _Segment:
        _make_directory(directory)
        while True:
            path = directory / f"{new_ulid()}-{os.getpid()}{_SUFFIX}"
            segment = cls(path, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600))
            try:
                fcntl.flock(segment._descriptor, fcntl.LOCK_EX)
                if not segment.is_removed:
                    _sync_directory(directory)
                    return segment
            except BaseException:
                segment.cut_back()
                segment.close()
                raise
            segment.close()  # a reader saw it before it was locked, took it for an abandoned one and removed it

    @property
    def is_removed(self) -> bool:
        return os.fstat(self._descriptor).st_nlink == 0

    def write(self, lines: bytes) -> None:
        rest = memoryview(lines)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        _sync(self._descriptor)
        self.size += len(lines)

    def cut_back(self) -> None:
        """Take away what was not synced; an empty file goes altogether, or a full disk would collect them."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, self.size)
        if self.size == 0:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # everything that counts was synced
            os.close(self._descriptor)


def _make_directory(directory: Path) -> None:
    if directory.is_dir():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    _sync_directory(directory.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A whole line of a segment, without its end. `record` is None where the line can't be read as one."""

    offset: int
    content: bytes
    record: Record | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """Lines that follow each other, and the offset at which the next portion begins."""

    lines: tuple[Line, ...]
    end: int


def segments(directory: Path) -> list[Path]:
    """Return the segment files in `directory`, oldest first; none if it is not there. Raises RecordsError."""
    try:
        return sorted(path for path in directory.iterdir() if path.name.endswith(_SUFFIX))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RecordsError(f"the outbox {directory} can't be read: {error.strerror}") from error


def read_segment(path: Path, offset: int, limit: int) -> Portion:
    """Return up to `limit` whole lines from `offset` on; none if there are no more, or the segment is gone.

    A torn last line is left: its writer may be about to finish it. Raises RecordsError.
    """
    lines: list[Line] = []
    try:
        with path.open("rb") as segment:
            segment.seek(offset)
            while len(lines) < limit and (content := segment.readline()).endswith(b"\n"):
                lines.append(Line(offset=offset, content=content[:-1], record=_record_in(content[:-1])))
                offset += len(content)
    except FileNotFoundError:
        return Portion(lines=(), end=offset)
    except OSError as error:
        raise RecordsError(f"the outbox segment {path} can't be read: {error.strerror}") from error
    return Portion(lines=tuple(lines), end=offset)


def _record_in(content: bytes) -> Record | None:
    try:
        return decode(content)
    except RecordsError:
        return None


def retire(path: Path, offset: int, *, keep: bool) -> bool:
    """Remove a segment that was read up to `offset`, if its writer is gone and no whole line is left; tell whether.

    A torn last line goes with it, since nobody was ever answered for it. With `keep` the file is set aside as
    `*.corrupt` instead, for a person to look at the lines that could not be read. Raises RecordsError.
    """
    try:
        with path.open("rb") as segment:
            try:
                fcntl.flock(segment, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            segment.seek(offset)
            torn = segment.read()  # only now: its writer may have written until it let go
            if b"\n" in torn:
                return False
            _take_away(path, keep=keep)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise RecordsError(f"the outbox segment {path} can't be removed: {error.strerror}") from error
    if torn:
        log("line.skipped", segment=path.name, offset=offset, bytes=len(torn))
    return True


def _take_away(path: Path, *, keep: bool) -> None:
    if keep:
        path.rename(path.with_name(path.name + SET_ASIDE))
    else:
        path.unlink()
    _sync_directory(path.parent)
