"""`driftgate audit`: list, show and verify the records in the ledger.

Exit codes: 0; 1 if the chain is broken or there is no such record; 2 if the ledger can't be read.
Easy to get wrong: a record repeats what somebody wrote. What no terminal should get is printed as an escape, and a
cell that a spreadsheet would take for a formula is quoted.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from webhook.cli.options import config_option
from webhook.durations import parse_duration
from webhook.errors import DriftgateError
from webhook.ledger import Filter, LedgerReader, Row
from webhook.messages import cut

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from webhook.record import Drift, Record

_LEAST = 12  # columns that a user, an object or a change is not cut below
_CELLS = (
    *("sequence", "id", "time", "event", "verdict", "reason", "count", "user", "groups", "operation", "group"),
    *(
        "version",
        "resource",
        "sub_resource",
        "kind",
        "namespace",
        "name",
        "managed_by",
        "drift",
        "window",
        "write",
        "after_write",
        "ask",
    ),
    *("until", "detail", "cluster", "uid", "hash"),
)

ledger_option = click.option(
    "--ledger",
    "ledger_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The ledger's file; by default the one in the configured state directory.",
)


class _Unreadable(click.ClickException):
    """The ledger can't be read."""

    exit_code = 2


def _moment(ctx: click.Context, param: click.Parameter, text: str | None) -> datetime | None:
    """Read `24h` or `7d` as that long ago, anything else as RFC 3339; without a zone it is UTC."""
    if text is None:
        return None
    try:
        return datetime.now(UTC) - _span(text)
    except (ValueError, OverflowError):
        pass
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        why = f"{text!r} is neither a span such as 24h or 7d nor a time such as 2026-11-23T14:00:00Z"
        raise click.BadParameter(why, ctx, param) from None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _span(text: str) -> timedelta:
    days = re.fullmatch(r"(\d{1,5})d", text)
    return timedelta(days=int(days[1])) if days else parse_duration(text)


@click.group()
def audit() -> None:
    """List, show and verify records: who was denied, who broke the glass, and what came of it."""


@audit.command("list")
@click.option("--since", metavar="TIME", callback=_moment, help="From then on: 24h, 7d, or 2026-11-23T14:00:00Z.")
@click.option("--user", help="By this user name.")
@click.option("-n", "--namespace", help="In this namespace.")
@click.option("--kind", help="On objects of this kind, such as Deployment.")
@click.option("--name", help="On objects of this name.")
@click.option("--tool", help="Managed by this tool, or application: argocd, flux, 'Argo CD application \"shop\"'.")
@click.option("--verdict", type=click.Choice(["Allow", "Deny", "BreakGlass"], case_sensitive=False))
@click.option("--window", help="Of the break-glass window with this id.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many, the newest.")
@click.option("-o", "--output", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
@config_option
@ledger_option
def list_records(*, limit: int, output: str, config_file: Path | None, ledger_file: Path | None, **wanted: Any) -> None:
    """List records, the newest first. A table is cut to the terminal; piped it is whole."""
    with _ledger(config_file, ledger_file) as ledger:
        rows = ledger.list(Filter(**wanted), limit=limit + 1)
        more, rows = len(rows) > limit, rows[:limit]
        nothing = "No record fits." if ledger.head()[0] else "The ledger is empty: nothing was recorded yet."
    if output == "json":
        click.echo(json.dumps([as_json(row) for row in rows], indent=2))
    elif output == "csv":
        click.echo(as_csv(rows), nl=False)
    elif rows:
        click.echo(as_table(rows, shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else None))
    else:
        click.echo(nothing, err=True)
    if more:
        click.echo(f"These are the newest {limit}; there are more: --limit, or --since and other filters.", err=True)


@audit.command()
@click.argument("id_", metavar="ID")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@config_option
@ledger_option
def show(id_: str, output: str, config_file: Path | None, ledger_file: Path | None) -> None:
    """Show all of one record. The beginning of its ID is enough, if no other begins so."""
    with _ledger(config_file, ledger_file) as ledger:
        row = ledger.show(id_)
    if row is None:
        raise click.ClickException(f"there is no record {clean(id_)}: `driftgate audit list` shows which there are")
    click.echo(json.dumps(as_json(row), indent=2) if output == "json" else as_text(row))


@audit.command()
@config_option
@ledger_option
def verify(config_file: Path | None, ledger_file: Path | None) -> None:
    """Read the whole chain: was a record changed, removed, put in or moved?

    Note the last hash elsewhere: it tells later whether the chain up to here is still the same.
    """
    with _ledger(config_file, ledger_file) as ledger:
        found = ledger.verify()
    if not found.intact:
        click.echo(f"CHAIN BROKEN: {clean(found.problem)}")
        click.echo(
            f"intact up to row {found.count}, hash {found.hash}" if found.count else "no row before it is intact"
        )
        sys.exit(1)
    click.echo(f"{found.count} records, chain intact")
    if found.count:
        click.echo(f"last hash {found.hash}")


@contextmanager
def _ledger(config_file: Path | None, ledger_file: Path | None) -> Iterator[LedgerReader]:
    from webhook.config import load

    try:
        with LedgerReader(ledger_file or load(config_file).ledger) as ledger:
            yield ledger
    except DriftgateError as error:
        raise _Unreadable(clean(str(error))) from None


def clean(text: str) -> str:
    """Return `text` with everything that is not printable as an escape: `\\x1b`, `\\u202e`, `\\n`."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def as_json(row: Row) -> dict[str, Any]:
    """Return a row as JSON types: all fields of the record, its number and its hash."""
    record: dict[str, Any] = msgspec.to_builtins(msgspec.structs.asdict(row.record))
    return {"sequence": row.sequence, **record, "hash": row.hash}


def as_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV with a header."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(_CELLS)
    for row in rows:
        cells = as_json(row)
        cells["groups"] = " ".join(row.record.groups)
        cells["drift"] = "; ".join(map(_print_drift, row.record.drift))
        writer.writerow([_defused(clean(str(cells[name]))) for name in _CELLS])
    return written.getvalue()


def _defused(cell: str) -> str:
    return f"'{cell}" if cell.lstrip().startswith(("=", "+", "-", "@")) else cell


def as_table(rows: Sequence[Row], width: int | None) -> str:
    """Return rows as a table, cut to `width` columns; None: nothing is cut."""
    lines = [("TIME", "VERDICT", "USER", "OBJECT", "RECORD", "CHANGE"), *(_cells(row.record) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if width is not None:
        widths = _fitting(widths, width)
    return "\n".join(
        "  ".join(cut(cell, room).ljust(room) for cell, room in zip(line, widths, strict=True) if room).rstrip()
        for line in lines
    )


def _fitting(widths: Sequence[int], width: int) -> list[int]:
    """Return the widths so that all fits: the change gives way first, then the object and the user."""
    time, verdict, user, object_, record, change = widths
    room = width - time - verdict - record - 8  # blanks between five columns
    user = min(user, max(_LEAST, room * 2 // 5))
    object_ = min(object_, max(_LEAST, room - user))
    left = room - user - object_ - 2
    return [time, verdict, user, object_, record, min(change, left) if left >= _LEAST else 0]


def _cells(record: Record) -> tuple[str, ...]:
    change = _print_drift(record.drift[0]) if record.drift else record.detail
    more = f" (and {len(record.drift) - 1} more)" if len(record.drift) > 1 else ""
    cells = (_seconds(record.time), _outcome(record), record.user, _object(record), record.id, change + more)
    return tuple(clean(cell) for cell in cells)


def _seconds(time: str) -> str:
    """Return a record's time without its milliseconds."""
    return re.sub(r"\.\d+Z$", "Z", time)


def _outcome(record: Record) -> str:
    if not record.verdict:
        return record.event
    repeated = {"review.repeated": f" +{record.count}"}.get(record.event, f" x{record.count}" * (record.count > 1))
    return f"{record.verdict} {record.reason}{repeated}"


def _object(record: Record) -> str:
    name = "/".join(filter(None, (record.namespace, record.name, record.sub_resource)))
    return f"{record.kind} {name}".strip()


def _print_drift(drift: Drift) -> str:
    return f"{drift.path}: {drift.before} -> {drift.after}" if drift.before or drift.after else f"{drift.path} (hidden)"


def as_text(row: Row) -> str:
    """Return all of a record for people, a line each."""
    record = row.record
    api = "/".join(filter(None, (record.group, record.version)))
    lines = [
        ("Record", record.id),
        ("Time", record.time),
        ("Event", record.event),
        ("Verdict", f"{record.verdict} {record.reason}".strip()),
        ("Count", str(record.count) if record.count != 1 else ""),
        ("User", record.user),
        ("Groups", ", ".join(record.groups)),
        ("Operation", record.operation),
        ("Object", _object(record)),
        ("Resource", f"{record.resource} {api}".strip()),
        ("Managed by", record.managed_by),
        ("Window", record.window),
        ("Asked", record.ask),
        ("Until", record.until),
        ("Detail", record.detail),
        ("Cluster", record.cluster),
        ("Review", record.uid),
        ("Row", str(row.sequence)),
        ("Hash", row.hash),
    ]
    text = [f"{label + ':':<12}{clean(value)}" for label, value in lines if value]
    if record.drift:
        text += ["Drift:", *(f"  {clean(_print_drift(drift))}" for drift in record.drift)]
    return "\n".join(text)
