"""`driftgate audit`: what people see of the records, on a terminal, in a pipe, in a spreadsheet."""

import csv
import io
import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from webhook.cli.audit import as_csv, as_table, as_text, audit
from webhook.ledger import Filter, Ledger, LedgerReader
from webhook.record import Drift, Record, print_millis

HOSTILE = "\x1b[31mroot\x1b[0m\n\u202egnp\x9b2J"
NOW = datetime.now(UTC)


def record(number=1, **fields):
    """Return a denial of `number` minutes ago."""
    values = {
        "id": f"01M5ABCDEF{number:016}",
        "time": print_millis(NOW - timedelta(minutes=number)),
        "user": "alice@example.org",
        "groups": ("dev", "system:authenticated"),
        "operation": "UPDATE",
        "group": "apps",
        "version": "v1",
        "resource": "deployments",
        "kind": "Deployment",
        "namespace": "shop",
        "name": "checkout",
        "managed_by": 'Argo CD application "shop-prod"',
        "verdict": "Deny",
        "reason": "Drift",
        "drift": (Drift(".spec.replicas", "3", "5"), Drift(".spec.paused", "(absent)", "true")),
    }
    return Record(**{**values, **fields})


RECORDS = (
    record(1),
    record(
        2, user="bob", verdict="BreakGlass", reason="Granted", window="01W", ask="INC-42", until="2026-11-23T13:00Z"
    ),
    record(3, event="window.opened", verdict="", reason="", drift=(), window="01W", detail="issue 7 was filed"),
    record(4, namespace="", kind="Namespace", name="pay", managed_by="Flux Kustomization flux-system/apps"),
    record(90, event="review.repeated", count=12),
    record(60 * 50, user="system:serviceaccount:argocd:argocd-application-controller", reason="Held"),
)


@pytest.fixture
def ledger(tmp_path):
    """The file of a ledger with some records."""
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as opened:
        opened.append(reversed(RECORDS))
    return path


def run(*arguments, code=0):
    """Return what the command prints on standard output and error."""
    result = CliRunner().invoke(audit, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def rows_of(path):
    """Return all rows."""
    with LedgerReader(path) as reader:
        return reader.list()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], [1, 2, 3, 4, 90, 3000]),
        (["--since", "24h"], [1, 2, 3, 4, 90]),
        (["--since", "1h30m"], [1, 2, 3, 4]),
        (["--since", "7d", "--limit", "1"], [1]),
        (["--since", print_millis(NOW - timedelta(minutes=3))], [1, 2, 3]),
        (["--since", f"{NOW - timedelta(minutes=3):%Y-%m-%dT%H:%M:%S}"], [1, 2, 3]),
        (["--user", "bob"], [2]),
        (["-n", "shop", "--name", "checkout", "--kind", "deployment"], [1, 2, 3, 90, 3000]),
        (["--namespace", ""], [4]),
        (["--tool", "flux"], [4]),
        (["--verdict", "breakglass"], [2]),
        (["--window", "01W"], [2, 3]),
        (["--user", "nobody"], []),
    ],
)
def test_records_are_listed_by_filters(ledger, arguments, found):
    """The newest first."""
    printed, _ = run("list", "--ledger", ledger, "-o", "json", *arguments)

    assert [int(row["id"][10:]) for row in json.loads(printed)] == found


def test_a_table_is_whole_where_it_is_piped(ledger):
    """One record a line, nothing cut, so that it can be searched."""
    printed, said = run("list", "--ledger", ledger)

    header, *lines = printed.splitlines()
    assert header.split() == ["TIME", "VERDICT", "USER", "OBJECT", "RECORD", "CHANGE"]
    assert [line[: line.index("Z") + 1] for line in lines] == [f"{one.time[:19]}Z" for one in RECORDS]
    assert "Deny Drift  " in lines[0]
    assert lines[0].endswith(
        "Deployment shop/checkout  01M5ABCDEF0000000000000001  .spec.replicas: 3 -> 5 (and 1 more)"
    )
    assert "window.opened" in lines[2]
    assert lines[2].endswith("issue 7 was filed")
    assert "  Namespace pay  " in lines[3]
    assert "Deny Drift +12" in lines[4]
    assert "system:serviceaccount:argocd:argocd-application-controller" in lines[5]
    assert said == ""


@pytest.mark.parametrize("width", [100, 120, 160, 240])
def test_a_table_fits_the_terminal(ledger, width):
    """Change, object and user give way; time, verdict and record are never cut."""
    lines = as_table(rows_of(ledger), width).splitlines()

    assert max(map(len, lines)) <= width
    assert all(one.id in line for one, line in zip(RECORDS, lines[1:], strict=True))
    assert "BreakGlass Granted" in lines[2]
    assert ("CHANGE" in lines[0]) == (width >= 160)
    assert ("argocd-application-controller" in lines[6]) == (width == 240)


def test_all_of_a_record_is_shown(ledger):
    """Fields before and after, a line each."""
    printed, _ = run("show", "01m5abcdef0000000000000002", "--ledger", ledger)

    lines = printed.splitlines()
    assert lines[0] == "Record:     01M5ABCDEF0000000000000002"
    assert "Verdict:    BreakGlass Granted" in lines
    assert "Groups:     dev, system:authenticated" in lines
    assert "Resource:   deployments apps/v1" in lines
    assert "Asked:      INC-42" in lines
    assert f"Hash:       {rows_of(ledger)[1].hash}" in lines
    assert lines[-3:] == ["Drift:", "  .spec.replicas: 3 -> 5", "  .spec.paused: (absent) -> true"]
    assert "  .data.password (hidden)" in as_text_of(ledger, drift=(Drift(".data.password", "", ""),))


def as_text_of(path, **fields):
    """Return how one more record is shown."""
    with Ledger(path) as opened:
        opened.append([record(777, **fields)])
        return as_text(opened.list(Filter(until=NOW - timedelta(minutes=776)), limit=1)[0])


def test_a_record_as_json_has_every_field(ledger):
    """With its defaults, so that a script may rely on them."""
    printed, _ = run("show", RECORDS[0].id, "--ledger", ledger, "-o", "json")

    shown = json.loads(printed)
    assert set(shown) == {*Record.__struct_fields__, "sequence", "hash"}
    assert shown["drift"][0] == {"path": ".spec.replicas", "before": "3", "after": "5"}
    assert (shown["event"], shown["count"], shown["sequence"]) == ("review", 1, 6)


def test_csv_has_a_column_for_every_field(ledger):
    """Lists are joined, and it can be read back."""
    printed, _ = run("list", "--ledger", ledger, "-o", "csv", "--limit", "1")

    (row,) = csv.DictReader(io.StringIO(printed))
    assert set(row) == {*Record.__struct_fields__, "sequence", "hash"}
    assert row["drift"] == ".spec.replicas: 3 -> 5; .spec.paused: (absent) -> true"
    assert row["groups"] == "dev system:authenticated"


@pytest.mark.parametrize("cell", ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\t=1", " =1", "\r=1"])
def test_a_spreadsheet_gets_no_formulas(ledger, cell):
    """What somebody called himself is text."""
    with Ledger(ledger) as opened:
        opened.append([record(0, user=cell)])

    (row, *_) = csv.DictReader(io.StringIO(as_csv(rows_of(ledger))))
    assert row["user"][0] in "'\\"
    assert row["user"].endswith(cell.strip())


def test_a_terminal_gets_no_control_characters(ledger):
    """Names that were chosen to repaint a screen are printed as escapes."""
    with Ledger(ledger) as opened:
        opened.append([record(0, user=HOSTILE, name=HOSTILE, detail=HOSTILE, drift=(Drift(HOSTILE, HOSTILE, ""),))])

    for arguments in (
        ("list",),
        ("list", "-o", "csv"),
        ("list", "-o", "json"),
        ("show", record(0).id),
        ("show", record(0).id, "-o", "json"),
    ):
        printed, _ = run(*arguments, "--ledger", ledger)
        assert all(letter.isprintable() or letter == "\n" for letter in printed)
    assert "\\x1b[31mroot\\x1b[0m\\n\\u202egnp\\x9b2J" in run("list", "--ledger", ledger)[0]
    said = run("show", HOSTILE, "--ledger", ledger, code=1)[1]
    assert said.startswith("Error: there is no record \\x1b[31mroot")


def test_an_intact_chain_is_told_with_its_last_hash(ledger):
    """The hash is there to be noted."""
    printed, _ = run("verify", "--ledger", ledger)

    assert printed.splitlines() == ["6 records, chain intact", f"last hash {rows_of(ledger)[0].hash}"]


def test_a_broken_chain_is_told_with_the_place(ledger):
    """Exit code 1, and where to look."""
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("DELETE FROM records WHERE sequence = 3")

    printed, _ = run("verify", "--ledger", ledger, code=1)

    assert printed.splitlines()[0] == "CHAIN BROKEN: row 3 is missing: row 4 comes instead"
    assert printed.splitlines()[1].startswith("intact up to row 2, hash ")


def test_a_row_that_holds_no_record_is_a_sentence(ledger):
    """Nothing is guessed."""
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("UPDATE records SET record = 'x' WHERE sequence = 3")

    _, said = run("list", "--ledger", ledger, code=2)

    assert said == "Error: row 3 of the ledger holds no record: `driftgate audit verify` says more\n"


def test_an_empty_ledger_says_so(tmp_path):
    """And so does a filter that nothing fits."""
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()

    assert run("list", "--ledger", path) == ("", "The ledger is empty: nothing was recorded yet.\n")
    assert run("list", "--ledger", path, "-o", "json")[0] == "[]\n"
    assert run("verify", "--ledger", path)[0] == "0 records, chain intact\n"
    with Ledger(path) as opened:
        opened.append([record()])
    assert run("list", "--ledger", path, "--user", "x") == ("", "No record fits.\n")


def test_more_than_the_limit_is_told(ledger):
    """Nobody takes the newest for all."""
    printed, said = run("list", "--ledger", ledger, "--limit", "5")
    assert len(printed.splitlines()) == 6
    assert "the newest 5; there are more" in said

    assert run("list", "--ledger", ledger, "--limit", "6")[1] == ""


@pytest.mark.parametrize("command", [["list"], ["show", "01"], ["verify"]])
def test_a_ledger_that_is_not_there_is_a_sentence(tmp_path, command):
    """Exit code 2, and what to do; nothing is made."""
    _, said = run(*command, "--ledger", tmp_path / "nowhere.sqlite", code=2)

    assert said.startswith(f"Error: there is no ledger {tmp_path}/nowhere.sqlite: the controller makes it")
    assert list(tmp_path.iterdir()) == []


def test_the_ledger_is_found_by_the_configuration(ledger, tmp_path):
    """As the controller finds it; a configuration that is refused is a sentence too."""
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(f"state_directory: {tmp_path}\n")
    bad.write_text("state_dir: x\n")

    assert run("verify", "--config", good)[0].startswith("6 records")
    assert "did you mean" in run("verify", "--config", bad, code=2)[1]
    assert run("verify", "--config", bad, "--ledger", ledger)[0].startswith("6 records")


@pytest.mark.parametrize("since", ["yesterday", "24", "1x", "2026-13-01", "", "h"])
def test_a_time_that_is_none_is_refused(ledger, since):
    """With the forms that are known."""
    _, said = run("list", "--ledger", ledger, "--since", since, code=2)

    assert "neither a span such as 24h or 7d nor a time such as" in said


def test_a_record_that_is_not_there_is_a_sentence(ledger):
    """Exit code 1; 2 where the beginning of an id is not enough."""
    assert "there is no record 02: `driftgate audit list`" in run("show", "02", "--ledger", ledger, code=1)[1]
    assert "several records begin with '01M5'" in run("show", "01m5", "--ledger", ledger, code=2)[1]
