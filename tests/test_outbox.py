"""The outbox: what was answered for is on disk, whatever happens to the process or the disk."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhook import outbox as outbox_module
from webhook.errors import RecordsError
from webhook.outbox import Outbox, read_segment, retire, segments
from webhook.record import Record, decode, encode

WRITER = """
import sys
from pathlib import Path
from webhook.outbox import Outbox
from webhook.record import Record

outbox = Outbox(Path(sys.argv[1]))
number = 0
while True:
    batch = [Record(id=f"{number + i:026}", time="", detail="x" * 2000) for i in range(20)]
    futures = [outbox.append(record) for record in batch]
    for record, future in zip(batch, futures):
        future.result()
        print(record.id, flush=True)
    number += 20
"""

FULL_DISK = """
import json, resource, sys
from pathlib import Path
from webhook.errors import RecordsError
from webhook.outbox import Outbox
from webhook.record import Record

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def outcome(id_, size):
    try:
        outbox.append(Record(id=id_, time="", detail="x" * size)).result(10)
    except RecordsError as error:
        return str(error)
    return "kept"

outbox = Outbox(Path(sys.argv[1]))
limit(1000)
found = [outcome("a", 500), outcome("b", 900), outcome("c", 1500), outcome("d", 500)]
limit(resource.RLIM_INFINITY)
found.append(outcome("e", 1500))
outbox.close()
print(json.dumps(found))
"""

FORKED = """
import os, sys
from pathlib import Path
from webhook.outbox import Outbox
from webhook.record import Record

outbox = Outbox(Path(sys.argv[1]))
if sys.argv[2] == "used":
    outbox.append(Record(id="parent", time="")).result(10)
children = []
for number in range(3):
    pid = os.fork()
    if pid == 0:
        for part in "abc":
            outbox.append(Record(id=f"child-{number}{part}", time="")).result(10)
        outbox.close()
        os._exit(0)
    children.append(pid)
sys.exit(max(os.waitpid(pid, 0)[1] for pid in children))
"""


def record(id_="01", **fields):
    """Return a record."""
    return Record(id=id_, time="2026-11-23T12:00:00.000Z", **fields)


def kept(directory):
    """Return the ids of all records in a folder's segments."""
    return [decode(line).id for path in segments(directory) for line in path.read_bytes().splitlines(keepends=False)]


def ids(portion):
    """Return the ids of a portion's records; None for a line that can't be read."""
    return [line.record and line.record.id for line in portion.lines]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state" / "outbox"


@pytest.fixture
def outbox(folder):
    opened = Outbox(folder)
    yield opened
    opened.close()


def test_a_record_is_on_disk_when_its_future_is_done(outbox, folder):
    """One line of JSON a record, in a file and a folder that only we may read."""
    written = record(user="alice", detail="two\nlines")

    assert outbox.append(written).result(5) is None

    (segment,) = segments(folder)
    assert segment.read_bytes() == encode(written) + b"\n"
    assert segment.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_nothing_happens_before_the_first_record(outbox, folder):
    """No thread and no file: the server may fork."""
    assert not folder.exists()
    assert "outbox" not in {thread.name for thread in threading.enumerate()}


def test_records_of_many_threads_share_a_sync(outbox, folder, monkeypatch):
    """Group commit: what comes while the disk is busy is written together."""
    syncs = []
    real = outbox_module._sync

    def counted(descriptor):
        syncs.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(outbox_module, "_sync", counted)
    ids = [f"{number:04}" for number in range(400)]

    def work(mine):
        for id_ in mine:
            outbox.append(record(id_)).result(5)

    threads = [threading.Thread(target=work, args=(ids[n::16],)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(kept(folder)) == ids
    assert len(segments(folder)) == 1
    assert len(syncs) < len(ids) / 2


def test_a_segment_that_is_full_is_followed_by_another(folder):
    """Segments are bounded, and come in the order of their names."""
    outbox = Outbox(folder, segment_size=300)

    for number in range(10):
        outbox.append(record(f"{number:02}", detail="x" * 100)).result(5)
    outbox.close()

    assert len(segments(folder)) == 5
    assert sorted(kept(folder)) == [f"{number:02}" for number in range(10)]


@pytest.mark.parametrize("parent", ["unused", "used"])
def test_workers_that_share_a_folder_have_files_of_their_own(tmp_path, parent):
    """An outbox that was made before a fork, even one that was used, works in every child."""
    subprocess.run([sys.executable, "-c", FORKED, str(tmp_path), parent], check=True, timeout=30)

    written = [{decode(line).id[:-1] for line in path.read_bytes().splitlines()} for path in segments(tmp_path)]
    written.sort(key=str)
    assert written == [{"child-0"}, {"child-1"}, {"child-2"}, {"paren"}][: 3 + (parent == "used")]


def test_every_record_that_was_answered_for_survives_kill_9(tmp_path):
    """Nothing that was promised is lost, and what is torn is only at the very end."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    with writer, writer.stdout as printed:
        answered = [printed.readline().strip() for _ in range(200)]
        writer.send_signal(signal.SIGKILL)
        answered += printed.read().split()

    (segment,) = segments(tmp_path)
    portion = read_segment(segment, 0, 1_000_000)
    assert None not in ids(portion)
    assert set(answered) <= set(ids(portion))
    assert retire(segment, portion.end, keep=False)
    assert segments(tmp_path) == []


def test_a_full_disk_refuses_and_takes_the_next_record_when_there_is_room(tmp_path):
    """A line that did not fit is cut off, the sentence says what to do, and no empty files are left behind."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], check=True, timeout=30, capture_output=True, text=True
    )

    first, torn, too_long, fits_a_new_segment, with_room = json.loads(done.stdout)
    assert (first, fits_a_new_segment, with_room) == ("kept", "kept", "kept")
    assert f"the outbox {tmp_path} can't keep records" in torn
    assert "Make room on its disk" in torn
    assert "Make room" in too_long
    assert kept(tmp_path) == ["a", "d", "e"]
    assert all(segment.stat().st_size > 0 for segment in segments(tmp_path))


def test_a_folder_that_cannot_be_written_fails_until_it_can(tmp_path):
    """The thread outlives the failure."""
    folder = tmp_path / "outbox"
    folder.write_text("in the way")
    outbox = Outbox(folder)

    for _ in range(2):
        with pytest.raises(RecordsError, match="the next record is tried again"):
            outbox.append(record()).result(5)
    folder.unlink()
    outbox.append(record()).result(5)
    outbox.close()

    assert kept(folder) == ["01"]


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "no space left on device. Make room"),
        (errno.EROFS, f"read-only file system. Let user {os.geteuid()} write there"),
        (errno.EIO, "input/output error. Look at the folder and its disk"),
    ],
)
def test_after_a_failed_sync_the_file_is_never_written_again(outbox, folder, monkeypatch, number, hint):
    """What the disk did not confirm is not kept, so that a refused write leaves no record."""
    outbox.append(record("01")).result(5)
    real = outbox_module._sync

    def failing(_descriptor):
        monkeypatch.setattr(outbox_module, "_sync", real)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(outbox_module, "_sync", failing)
    with pytest.raises(RecordsError, match=hint):
        outbox.append(record("02")).result(5)
    outbox.append(record("03")).result(5)

    assert [path.read_bytes().count(b"\n") for path in segments(folder)] == [1, 1]
    assert sorted(kept(folder)) == ["01", "03"]


def test_whatever_goes_wrong_the_thread_goes_on(outbox, folder, monkeypatch):
    """An error that nobody thought of fails its batch only."""
    monkeypatch.setattr(outbox_module, "new_ulid", lambda: 1 / 0)
    with pytest.raises(RecordsError, match="ZeroDivisionError"):
        outbox.append(record("01")).result(5)
    monkeypatch.undo()

    outbox.append(record("02")).result(5)

    assert kept(folder) == ["02"]


def test_a_slow_disk_does_not_fill_the_memory(folder, monkeypatch):
    """Beyond a bound records are refused at once; those that wait are still written."""
    let_go = threading.Event()
    real = outbox_module._sync
    monkeypatch.setattr(outbox_module, "_sync", lambda fd: (let_go.wait(10), real(fd)))
    outbox = Outbox(folder, most_waiting=1000)

    futures = [outbox.append(record(f"{number:02}", detail="x" * 200)) for number in range(12)]
    refused = [future for future in futures if future.done()]
    with pytest.raises(RecordsError, match=r"is full: [1-9] records wait for the disk"):
        refused[0].result()
    let_go.set()
    outbox.close()

    assert len(kept(folder)) == len(futures) - len(refused) < 12


def test_a_record_that_was_handed_over_cannot_be_taken_back(outbox, folder):
    """Whoever stops waiting does not disturb the thread."""
    future = outbox.append(record())

    assert not future.cancel()
    future.result(5)
    assert kept(folder) == ["01"]


def test_what_is_no_json_is_refused(outbox):
    """A lone surrogate can't be written as UTF-8."""
    with pytest.raises(RecordsError, match="can't be written as JSON"):
        outbox.append(record(user="\ud800")).result(5)


def test_closing_writes_what_waits_and_refuses_what_comes(folder):
    """The last records of a process are not lost."""
    outbox = Outbox(folder)
    futures = [outbox.append(record(f"{number:02}")) for number in range(50)]
    outbox.close()
    outbox.close()

    assert all(future.result(0) is None for future in futures)
    assert len(kept(folder)) == 50
    with pytest.raises(RecordsError, match="is closed"):
        outbox.append(record()).result(0)


def test_a_segment_that_was_taken_away_is_not_written_any_longer(outbox, folder):
    """What goes into a file without a name would be lost."""
    outbox.append(record("01")).result(5)
    segments(folder)[0].unlink()

    outbox.append(record("02")).result(5)

    assert kept(folder) == ["02"]


def test_a_reader_that_is_faster_than_the_lock_takes_nothing_away(outbox, folder, monkeypatch):
    """A new segment that was taken for an abandoned one, and removed, is made again."""
    real = fcntl.flock
    retired: list[bool] = []

    def slow(descriptor, operation):
        if operation == fcntl.LOCK_EX and not retired:
            retired.extend(retire(path, 0, keep=False) for path in segments(folder))
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    outbox.append(record()).result(5)

    assert retired == [True]
    assert kept(folder) == ["01"]


def test_a_segment_is_read_in_portions(outbox, folder):
    """Each portion ends where the next begins, and the last is empty."""
    for number in range(5):
        outbox.append(record(f"{number:02}")).result(5)
    (segment,) = segments(folder)

    offset, found = 0, []
    while (portion := read_segment(segment, offset, 2)).lines:
        found.append(ids(portion))
        offset = portion.end

    assert found == [["00", "01"], ["02", "03"], ["04"]]
    assert offset == segment.stat().st_size


def test_a_torn_line_is_left_while_its_writer_lives(tmp_path, capfd):
    """It may be about to be finished; once the writer is gone, it is skipped and logged."""
    segment = tmp_path / "01-1.jsonl"
    whole = encode(record()) + b"\n"
    with segment.open("wb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        writer.write(whole + whole[:20])
        writer.flush()
        portion = read_segment(segment, 0, 10)

        assert ids(portion) == ["01"]
        assert portion.end == len(whole)
        assert not retire(segment, portion.end, keep=False)
    assert retire(segment, portion.end, keep=False)

    assert not segment.exists()
    logged = json.loads(capfd.readouterr().out)
    assert (logged["event"], logged["segment"], logged["bytes"]) == ("line.skipped", "01-1.jsonl", 20)


def test_lines_that_came_last_are_not_thrown_away(tmp_path):
    """A writer may finish a line between the last reading and its own end."""
    segment = tmp_path / "01-1.jsonl"
    segment.write_bytes(encode(record()) + b"\n")

    assert not retire(segment, 0, keep=False)
    assert segment.exists()


@pytest.mark.parametrize("bad", [b"", b"{", b'{"id":1}', b"\x00\x00", b'{"id":"\xff","time":""}', b"[" * 5000])
def test_a_line_that_cannot_be_read_does_not_hide_the_others(tmp_path, bad):
    """It comes with its bytes and without a record, and its segment can be set aside."""
    segment = tmp_path / "01-1.jsonl"
    good = encode(record())
    segment.write_bytes(good + b"\n" + bad + b"\n" + good + b"\n")

    portion = read_segment(segment, 0, 10)
    retire(segment, portion.end, keep=True)

    assert ids(portion) == ["01", None, "01"]
    assert portion.lines[1].content == bad
    assert segments(tmp_path) == []
    assert (tmp_path / "01-1.jsonl.corrupt").read_bytes().splitlines()[1] == bad


def test_a_folder_or_segment_that_is_not_there_holds_nothing(tmp_path):
    """The reader may come first, or come twice."""
    assert segments(tmp_path / "nowhere") == []
    assert read_segment(tmp_path / "gone.jsonl", 7, 10).end == 7
    assert retire(tmp_path / "gone.jsonl", 7, keep=False)
    with pytest.raises(RecordsError, match="can't be read"):
        read_segment(tmp_path, 0, 1)


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_stays_on_its_line(tmp_path_factory, text):
    """Line ends inside a text do not end a line."""
    segment = tmp_path_factory.getbasetemp() / "any.jsonl"
    segment.write_bytes(encode(record(detail=text, user=text)) + b"\n")

    (line,) = read_segment(segment, 0, 10).lines

    assert line.record == record(detail=text, user=text)
