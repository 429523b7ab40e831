"""The ledger: every record once, found by people, and no row changed without notice."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from webhook import ledger as ledger_module
from webhook.chain import COLUMNS, GENESIS, Chain, chain_hash
from webhook.errors import RecordsError
from webhook.ledger import Filter, Ledger, LedgerReader
from webhook.outbox import Outbox, segments
from webhook.record import Drift, Record, encode, new_ulid

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
ROWS = 8

WRITER = """
import sys
from pathlib import Path
from webhook.outbox import Outbox
from webhook.record import Record, new_ulid

outbox = Outbox(Path(sys.argv[1]), segment_size=20_000)
while True:
    batch = [Record(id=new_ulid(), time="") for _ in range(10)]
    for record, future in [(record, outbox.append(record)) for record in batch]:
        future.result()
        print(record.id, flush=True)
"""

TAKER = """
import sys
from pathlib import Path
from webhook.ledger import Ledger

with Ledger(Path(sys.argv[2])) as ledger:
    print("ready", flush=True)
    while True:
        ledger.take_in(Path(sys.argv[1]))
"""


def record(number=1, **fields):
    """Return a denial, `number` minutes after noon."""
    values = {
        "id": f"01M5{number:022}",
        "time": f"2026-11-23T12:{number:02}:00.000Z",
        "user": "alice",
        "kind": "Deployment",
        "namespace": "shop",
        "name": "checkout",
        "managed_by": 'Argo CD application "shop-prod"',
        "verdict": "Deny",
        "reason": "Drift",
        "drift": (Drift(".spec.replicas", "3", "5"),),
    }
    return Record(**{**values, **fields})


def numbers(rows):
    """Return the minutes of rows."""
    return [int(row.record.time[14:16]) for row in rows]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "ledger.sqlite"


@pytest.fixture
def ledger(path):
    with Ledger(path) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "outbox"


def fill(folder, records):
    """Leave an outbox whose writer is gone."""
    outbox = Outbox(folder)
    for future in [outbox.append(one) for one in records]:
        future.result(5)
    outbox.close()


def test_rows_are_chained_as_the_header_says(ledger):
    """Anybody can compute the hashes with nothing but SHA-256."""
    ledger.append([record(1), record(2)])
    ledger.append([record(3)])

    previous = bytes(32)
    for number, row in enumerate(ledger.list(newest_first=False), start=1):
        previous = hashlib.sha256(previous + number.to_bytes(8, "big") + row.line).digest()
        assert (row.sequence, row.hash, row.line) == (number, previous.hex(), encode(record(number)))
        assert row.record == record(number)
    assert ledger.head() == (3, previous.hex())
    assert ledger.verify().intact


def test_only_its_owner_reads_the_file(ledger, path):
    """Records tell who did what."""
    ledger.append([record()])

    assert {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {
        "ledger.sqlite": 0o600,
        "ledger.sqlite-wal": 0o600,
        "ledger.sqlite-shm": 0o600,
        "ledger.sqlite.lock": 0o600,
    }
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_record_is_added_once(ledger):
    """The same again is nothing new; another one under its id is refused, and with it the whole batch."""
    assert ledger.append([record(1), record(2)]) == 2
    assert ledger.append([record(2), record(3), record(3)]) == 1
    with pytest.raises(RecordsError, match="another record in the ledger has the id"):
        ledger.append([record(4), record(1, user="mallory")])

    assert numbers(ledger.list()) == [3, 2, 1]
    assert ledger.verify().count == 3


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Filter(), [6, 5, 4, 3, 2, 1]),
        (Filter(user="bob"), [2]),
        (Filter(namespace="pay"), [3]),
        (Filter(namespace=""), [6]),
        (Filter(kind="namespace"), [6]),
        (Filter(name="checkout", verdict="BreakGlass"), [4]),
        (Filter(tool="argocd"), [6, 4, 3, 2, 1]),
        (Filter(tool='Argo CD application "shop'), [6, 4, 3, 2, 1]),
        (Filter(tool="FLUX"), [5]),
        (Filter(tool="%"), []),
        (Filter(reason="Granted"), [4]),
        (Filter(event="window.opened"), [5]),
        (Filter(window="W1"), [5, 4]),
        (Filter(since=NOON + timedelta(minutes=5)), [6, 5]),
        (Filter(until=NOON + timedelta(minutes=2)), [1]),
        (Filter(since=NOON + timedelta(hours=1)), []),
        (Filter(user="' OR 1=1 --"), []),
    ],
)
def test_records_are_found_by_what_is_in_them(ledger, wanted, found):
    """All parts of a filter have to fit."""
    ledger.append(
        [
            record(1),
            record(2, user="bob"),
            record(3, namespace="pay"),
            record(4, verdict="BreakGlass", reason="Granted", window="W1"),
            record(5, event="window.opened", verdict="", reason="", window="W1", managed_by="Flux Kustomization a/b"),
            record(6, kind="Namespace", namespace="", name="shop"),
        ]
    )

    assert numbers(ledger.list(wanted)) == found
    assert numbers(ledger.list(wanted, limit=1, newest_first=False)) == found[-1:]


def test_records_are_listed_by_their_own_time(ledger):
    """A record that came late stands where it belongs."""
    ledger.append([record(1), record(3)])
    ledger.append([record(2)])

    assert numbers(ledger.list()) == [3, 2, 1]


def test_a_record_is_shown_by_its_id_or_the_beginning_of_it(ledger):
    """As far as that is unique; capitals don't count."""
    ledger.append([record(id="01ABC1"), record(id="01ABD2"), record(id="01ABD22")])

    assert ledger.show("01ABC1").record.id == "01ABC1"
    assert ledger.show(" 01abc").record.id == "01ABC1"
    assert ledger.show("01ABD2").record.id == "01ABD2"
    assert ledger.show("02") is None
    assert ledger.show("") is None
    assert ledger.show("01ABC%") is None
    with pytest.raises(RecordsError, match=r"several records begin with '01AB', 01ABC1 is one"):
        ledger.show("01ab")


def test_the_outbox_is_moved_into_the_ledger(ledger, folder):
    """Nothing is left behind once the writer is gone, and nothing comes twice."""
    fill(folder, [record(number) for number in range(5)])
    fill(folder, [record(number) for number in range(5, 9)])

    assert ledger.take_in(folder) == 9
    assert ledger.take_in(folder) == 0
    assert segments(folder) == []
    assert numbers(ledger.list(newest_first=False)) == list(range(9))
    with ledger.transaction() as connection:
        assert connection.execute("SELECT * FROM positions").fetchall() == []


def test_records_are_moved_while_their_writer_goes_on(ledger, folder):
    """A segment in use is read as far as it goes, again and again."""
    outbox = Outbox(folder)
    taken = []
    for number in range(4):
        outbox.append(record(number)).result(5)
        taken.append(ledger.take_in(folder))
    assert len(segments(folder)) == 1
    outbox.close()

    assert taken == [1, 1, 1, 1]
    assert ledger.take_in(folder) == 0
    assert segments(folder) == []
    assert ledger.verify() == ledger.verify()
    assert ledger.verify().count == 4


def test_a_crash_before_the_end_of_a_transaction_loses_and_doubles_nothing(ledger, folder, monkeypatch):
    """Rows and position are kept together or not at all."""
    fill(folder, [record(number) for number in range(20)])
    monkeypatch.setattr(ledger_module, "_PORTION", 7)
    real, calls = Chain.save, iter([False, False, True])

    def dying(chain):
        real(chain)
        if next(calls, False):
            raise KeyboardInterrupt

    monkeypatch.setattr(Chain, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        ledger.take_in(folder)

    assert ledger.head()[0] == 14
    assert ledger.take_in(folder) == 6
    assert numbers(ledger.list(newest_first=False)) == list(range(20))
    assert ledger.verify().intact


def test_writer_and_controller_are_killed_and_nothing_is_lost(tmp_path):
    """Every record that was answered for is in the ledger exactly once, whenever kill -9 comes."""
    folder, path = tmp_path / "outbox", tmp_path / "ledger.sqlite"
    arguments = [str(folder), str(path)]
    writer = subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    with writer, writer.stdout as printed:
        answered = [printed.readline().strip()]
        for _ in range(3):
            taker = subprocess.Popen([sys.executable, "-c", TAKER, *arguments], stdout=subprocess.PIPE, text=True)
            assert taker.stdout is not None
            with taker, taker.stdout as said:
                said.readline()
                answered += [printed.readline().strip() for _ in range(300)]
                taker.send_signal(signal.SIGKILL)
        writer.send_signal(signal.SIGKILL)
        answered += printed.read().split()

    with Ledger(path) as ledger:
        ledger.take_in(folder)
        found = [row.record.id for row in ledger.list(limit=1_000_000)]
        assert ledger.verify().intact
    assert len(found) == len(set(found))
    assert set(answered) <= set(found)
    assert segments(folder) == []


def test_a_line_that_cannot_be_read_is_reported_and_kept(ledger, folder, capfd):
    """The others are taken in; what is wrong is a record of its own, and a line of the log."""
    fill(folder, [record(1), record(2)])
    (segment,) = segments(folder)
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(lines[0] + b'{"id": "01M5\n' + lines[1])

    assert ledger.take_in(folder, now=NOON) == 2
    assert ledger.take_in(folder, now=NOON) == 0

    (report,) = ledger.list(Filter(event="outbox.corrupt"))
    assert report.record.time == "2026-11-23T12:00:00.000Z"
    assert f"1 lines of the outbox segment {segment.name}" in report.record.detail
    assert f"at byte {len(lines[0])}:" in report.record.detail
    assert [file.name for file in folder.iterdir()] == [f"{segment.name}.corrupt"]
    assert json.loads(capfd.readouterr().out)["event"] == "segment.refused"
    assert ledger.verify().count == 3


def test_a_record_cannot_be_replaced_through_the_outbox(ledger, folder):
    """One with the id of another is reported, and what was there stays."""
    ledger.append([record(1)])
    fill(folder, [record(1, user="mallory"), record(2)])

    assert ledger.take_in(folder) == 1

    assert ledger.show(record(1).id).record.user == "alice"
    assert len(ledger.list(Filter(event="outbox.corrupt"))) == 1


def test_one_segment_that_cannot_be_read_does_not_hold_up_the_others(ledger, folder):
    """It is raised when the others are done."""
    fill(folder, [record(1)])
    (folder / "00-1.jsonl").mkdir()

    with pytest.raises(RecordsError, match=r"00-1\.jsonl can't be read"):
        ledger.take_in(folder)

    assert numbers(ledger.list()) == [1]


def test_a_full_disk_refuses_and_takes_in_later(ledger, folder):
    """What waits in the outbox is not lost, and the chain is intact."""
    fill(folder, [record(number, detail="x" * 3000) for number in range(30)])
    with ledger.transaction() as connection:
        connection.execute("PRAGMA max_page_count = 1")  # as many as there are

    with pytest.raises(RecordsError, match="Make room on its disk; what waits in the outbox is not lost"):
        ledger.take_in(folder)
    assert ledger.verify().count == 0
    with ledger.transaction() as connection:
        connection.execute("PRAGMA max_page_count = 1000000")

    assert ledger.take_in(folder) == 30
    assert ledger.verify().intact


def test_a_second_writer_is_refused(ledger, path):
    """Two controllers would break the chain."""
    with pytest.raises(RecordsError, match="another controller is writing the ledger"):
        Ledger(path)
    ledger.close()

    with Ledger(path) as next_one:
        assert next_one.append([record()]) == 1


def test_readers_read_while_the_controller_writes(ledger, path):
    """They see what is committed, and can't write."""
    with LedgerReader(path) as reader:
        ledger.append([record(1)])
        with ledger.transaction():
            ledger.append([record(2)])
            assert numbers(reader.list()) == [1]
            assert reader.verify().count == 1
        assert numbers(reader.list()) == [2, 1]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader._connection.execute("DELETE FROM records")


def test_a_reader_may_be_used_by_several_threads(ledger, path):
    """As the audit page does."""
    ledger.append([record(number) for number in range(50)])
    found = []
    with LedgerReader(path) as reader:
        threads = [
            threading.Thread(target=lambda: found.append((reader.verify().count, len(reader.list()))))
            for _ in "12345678"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert found == [(50, 50)] * 8


def test_a_copy_on_a_read_only_medium_can_be_read(path, monkeypatch):
    """SQLite alone would want to write beside it."""
    with Ledger(path) as ledger:
        ledger.append([record()])
    monkeypatch.setattr(os, "access", lambda *_: False)

    with LedgerReader(path) as reader:
        assert reader.verify().count == 1
    assert {file.name for file in path.parent.iterdir()} == {"ledger.sqlite", "ledger.sqlite.lock"}


def test_a_transaction_is_kept_or_undone_as_a_whole(ledger):
    """Rows of others' tables go with the records that belong to them."""
    with ledger.transaction() as connection:
        connection.execute("CREATE TABLE windows (id TEXT PRIMARY KEY)")
        connection.execute("INSERT INTO windows VALUES ('a')")
        ledger.append([record(1)])
    with contextlib.suppress(KeyError), ledger.transaction():
        ledger.append([record(2)])
        raise KeyError
    with pytest.raises(RecordsError, match="UNIQUE constraint failed"), ledger.transaction() as connection:
        connection.execute("INSERT INTO windows VALUES ('a')")
    with ledger.transaction(), contextlib.suppress(RecordsError), ledger.transaction():
        ledger.append([record(3)])
        ledger.append([record(1, user="mallory")])

    assert numbers(ledger.list()) == [1]
    assert ledger.append([record(4)]) == 1
    assert ledger.verify().count == 2


def test_what_is_no_ledger_is_refused(tmp_path):
    """Each time with a sentence that says what to do."""
    (tmp_path / "text").write_text("not a database, but long enough to be looked at as one, header and all" * 3)
    with contextlib.closing(sqlite3.connect(tmp_path / "other")) as other:
        other.execute("CREATE TABLE t (x)")

    for name, why in [
        ("nowhere", "there is no ledger .*the controller makes it when it first starts"),
        ("nowhere/deeper", "there is no ledger"),
        ("text/deeper", "can't be read: not a directory"),
        ("text", "file is not a database. Keep the file as it is"),
        ("other", "is no ledger of driftgate"),
    ]:
        with pytest.raises(RecordsError, match=why):
            LedgerReader(tmp_path / name)
    for name, why in [
        ("text", "file is not a database"),
        ("other", "is no ledger"),
        ("text/deeper", "can't be written"),
    ]:
        with pytest.raises(RecordsError, match=why):
            Ledger(tmp_path / name)


def test_a_newer_schema_is_refused(path):
    """By readers and by the writer, which changes nothing in it."""
    Ledger(path).close()
    with contextlib.closing(sqlite3.connect(path)) as newer:
        newer.execute("PRAGMA user_version = 2")

    for kind in (LedgerReader, Ledger):
        with pytest.raises(RecordsError, match=r"written by a newer driftgate \(schema 2, this one knows 1\)"):
            kind(path)


# What verify finds


@dataclass(frozen=True, kw_only=True)
class Tampering:
    """One edit of the file behind our back, and what has to be found."""

    statements: tuple[str, ...]
    sequence: int | None
    says: str


def copy_row(number, sequence):
    """Return the statement that puts a copy of a row in, under another id."""
    others = ", ".join(f'"{column}"' for column in ("record", "hash", *COLUMNS))
    row = f"SELECT {sequence}, id || 'X', {others} FROM records WHERE sequence = {number}"
    return f"INSERT INTO records (sequence, id, {others}) {row}"


CASES = {
    "content": Tampering(
        statements=("UPDATE records SET record = CAST(replace(record, 'alice', 'carol') AS BLOB) WHERE sequence = 3",),
        sequence=3,
        says="row 3 .*does not follow from the one before",
    ),
    "content as text": Tampering(
        statements=("UPDATE records SET record = CAST(record AS TEXT) WHERE sequence = 3",),
        sequence=3,
        says="row 3 .*does not follow",
    ),
    "no text": Tampering(
        statements=("UPDATE records SET \"user\" = CAST(x'ff' AS TEXT) WHERE sequence = 3",),
        sequence=None,
        says="the file itself is damaged",
    ),
    "column": Tampering(
        statements=("UPDATE records SET \"user\" = 'carol' WHERE sequence = 4",),
        sequence=4,
        says='row 4 .*its column "user" was changed, the record says otherwise',
    ),
    "id": Tampering(
        statements=("UPDATE records SET id = 'X' WHERE sequence = 4",), sequence=4, says='row 4 .*its column "id"'
    ),
    "removed": Tampering(
        statements=("DELETE FROM records WHERE sequence = 5",), sequence=5, says="row 5 is missing: row 6 comes instead"
    ),
    "removed and renumbered": Tampering(
        statements=(
            "DELETE FROM records WHERE sequence = 5",
            "UPDATE records SET sequence = sequence - 1 WHERE sequence > 5",
        ),
        sequence=5,
        says="row 5 .*does not follow",
    ),
    "first removed": Tampering(
        statements=("DELETE FROM records WHERE sequence = 1",), sequence=1, says="row 1 is missing"
    ),
    "last two removed": Tampering(
        statements=("DELETE FROM records WHERE sequence > 6",),
        sequence=7,
        says="the last rows are missing: the head names row 8 as the last, the last one here is row 6",
    ),
    "last removed, head too low": Tampering(
        statements=("DELETE FROM records WHERE sequence > 6", "UPDATE head SET count = 6"),
        sequence=6,
        says="the head names row 6 with another hash",
    ),
    "all removed": Tampering(statements=("DELETE FROM records",), sequence=1, says="the last rows are missing"),
    "put in before": Tampering(statements=(copy_row(1, 0),), sequence=0, says="row 0 was put in"),
    "put in behind": Tampering(statements=(copy_row(8, 9),), sequence=9, says="row 9 was put in: the head names row 8"),
    "head removed": Tampering(statements=("DELETE FROM head",), sequence=1, says="row 1 was put in"),
    "head is nonsense": Tampering(
        statements=("UPDATE head SET count = 'x', hash = 1",), sequence=1, says="row 1 was put in"
    ),
    "swapped": Tampering(
        statements=(
            "UPDATE records SET sequence = -1 WHERE sequence = 3",
            "UPDATE records SET sequence = 3 WHERE sequence = 4",
            "UPDATE records SET sequence = 4 WHERE sequence = -1",
        ),
        sequence=3,
        says="row 3 .*another row's",
    ),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A ledger with eight rows, closed."""
    path = tmp_path_factory.mktemp("sound") / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.append(record(number) for number in range(1, ROWS + 1))
    return path


def tampered(sound, *statements):
    """Return a copy of the ledger, edited behind our back."""
    copy = sound.with_name("tampered.sqlite")
    for leftover in sound.parent.glob("tampered.*"):
        leftover.unlink()
    shutil.copy(sound, copy)
    with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        for statement in statements:
            with contextlib.suppress(sqlite3.IntegrityError):  # SQLite won't have it, so nothing is changed
                connection.execute(*statement) if isinstance(statement, tuple) else connection.execute(statement)
    return copy


def verified(path):
    """Return what is found in a ledger."""
    with LedgerReader(path) as reader:
        return reader.verify()


@pytest.mark.parametrize("case", CASES)
def test_what_was_done_to_the_file_is_found_and_named(sound, case):
    """The first bad row, and what is wrong with it."""
    found = verified(tampered(sound, *CASES[case].statements))

    assert not found.intact
    assert found.sequence == CASES[case].sequence
    assert pytest.raises(AssertionError, match=CASES[case].says).matches(AssertionError(found.problem))


VALUES = st.one_of(st.none(), st.integers(-(2**62), 2**62), st.text(max_size=5), st.binary(max_size=5))
ROW = st.integers(1, ROWS)


@st.composite
def edits(draw):
    """Draw one edit: of any column of a row, of rows as a whole, or of the head."""
    row, other = draw(st.lists(ROW, min_size=2, max_size=2, unique=True))
    place = draw(st.integers(-3, ROWS + 3))
    column = draw(st.sampled_from(["sequence", "id", "record", "hash", *COLUMNS]))
    return draw(
        st.sampled_from(
            [
                [(f'UPDATE OR IGNORE records SET "{column}" = ? WHERE sequence = ?', (draw(VALUES), row))],
                [(f"UPDATE OR IGNORE head SET {draw(st.sampled_from(['count', 'hash']))} = ?", (draw(VALUES),))],
                [f"DELETE FROM records WHERE sequence = {row}"],
                [  # put in, and those behind it renumbered
                    f"UPDATE records SET sequence = sequence + 1000 WHERE sequence >= {place}",
                    copy_row(row + 1000 * (row >= place), place),
                    "UPDATE records SET sequence = sequence - 999 WHERE sequence >= 1000",
                ],
                [  # two rows have each other's number
                    f"UPDATE records SET sequence = {new} WHERE sequence = {old}"
                    for old, new in ((row, 99), (other, row), (99, other))
                ],
                [  # two rows have each other's record
                    f"UPDATE records SET record = (SELECT r.record FROM records r WHERE r.sequence = {row + other}"
                    f" - records.sequence) WHERE sequence IN ({row}, {other})"
                ],
            ]
        )
    )


def content(path):
    """Return all that counts in a ledger."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.text_factory = lambda text: ("text", text)  # and not the same bytes as a BLOB
        return [connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in ("records", "head")]


@given(statements=edits())
@settings(max_examples=150, deadline=None)
def test_any_single_edit_is_found(sound, statements):
    """Whatever row was changed, removed, put in or moved, in whatever column."""
    path = tampered(sound, *statements)

    assert verified(path).intact == (content(path) == content(sound))


@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255), length=st.sampled_from([1, 1, 60, 4096]))
@settings(max_examples=100, deadline=None)
def test_a_damaged_file_is_a_sentence(sound, place, mask, length):
    """Whatever bytes the disk turned over: never another exception, and never an intact chain of other rows."""
    path = tampered(sound)
    damaged = bytearray(path.read_bytes())
    start = int(place * len(damaged))
    damaged[start : start + length] = bytes(byte ^ mask for byte in damaged[start : start + length])
    path.write_bytes(damaged)

    with contextlib.suppress(RecordsError), LedgerReader(path) as reader:
        if reader.verify().intact:
            assert numbers(reader.list(newest_first=False)) == list(range(1, ROWS + 1))


@pytest.mark.parametrize("case", CASES)
def test_a_broken_chain_takes_further_records_and_stays_broken(sound, case):
    """The audit log goes on, and adding does not cover up what was done."""
    path = tampered(sound, *CASES[case].statements)

    with Ledger(path) as ledger:
        assert ledger.append([record(40), record(41)]) == 2
        assert not ledger.verify().intact


def test_numbers_are_not_used_again(sound):
    """What was removed at the end leaves a gap, however many rows follow."""
    path = tampered(sound, "DELETE FROM records WHERE sequence > 6")

    with Ledger(path) as ledger:
        ledger.append([record(40)])
        assert ledger.list()[0].sequence == ROWS + 1
        assert ledger.verify().problem == "row 7 is missing: row 9 comes instead"


def test_a_schema_that_cannot_even_be_named_is_a_sentence(sound):
    """SQLite's own message is no UTF-8 then."""
    path = tampered(
        sound,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET name = CAST(x'ff' AS TEXT), sql = 'CREATE nonsense' WHERE name = 'records_by_user'",
    )

    with LedgerReader(path) as reader:
        assert "the file itself is damaged" in reader.verify().problem
        with pytest.raises(RecordsError, match=r"can't be used: .*Keep the file as it is for inquiry"):
            reader.list()


def test_whoever_can_write_the_whole_file_can_forge_it(sound):
    """What the header admits: only a hash that was noted elsewhere tells."""
    noted = verified(sound).hash
    forged, previous = [], GENESIS
    for number in range(1, ROWS + 1):
        line = encode(record(number, user="carol"))
        previous = chain_hash(previous, number, line)
        forged.append(
            ("UPDATE records SET record = ?, hash = ?, \"user\" = 'carol' WHERE sequence = ?", (line, previous, number))
        )
    path = tampered(sound, *forged, ("UPDATE head SET hash = ?", (previous,)))

    assert verified(path).intact
    assert verified(path).hash != noted


def test_an_index_that_hides_a_row_is_found(sound):
    """Searching relies on the indexes, so they are checked against the rows."""
    path = tampered(
        sound,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = sql || ' WHERE \"user\" <> ''alice''' WHERE name = 'records_by_user'",
        "PRAGMA writable_schema = RESET",
        "REINDEX records_by_user",
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = substr(sql, 1, instr(sql, ' WHERE') - 1) WHERE name = 'records_by_user'",
    )
    with LedgerReader(path) as reader:
        assert reader.list(Filter(user="alice")) == []
        found = reader.verify()

    assert not found.intact
    assert "records_by_user" in found.problem
    assert Path(path).exists()


def test_ids_of_real_records_work(ledger):
    """ULIDs in the same millisecond differ only at the end."""
    ids = [new_ulid(lambda: 1_795_000_000.0) for _ in range(20)]
    ledger.append(record(number, id=id_) for number, id_ in enumerate(ids))

    assert all(ledger.show(id_).record.id == id_ for id_ in ids)
