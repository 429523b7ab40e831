"""What could break in the bench without anybody noticing: what it sends, and how it tells. Nothing is timed."""

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime

import pytest

from tests.bench import cpu, generator, report
from tests.bench.figures import FLOOR, Cost, Figures, Memory, Run
from tests.bench.reviews import KB, SIZES, TOKEN, TOLERANCE, Write, body
from tests.bench.serving import HALF, RECORDED, groups
from webhook.admission import Webhook, parse_review
from webhook.decision import Reason, decide
from webhook.facts import facts_of
from webhook.policy import Policy

REASONS = {
    Write.DENIED: Reason.DRIFT,
    Write.DEEP: Reason.DRIFT,
    Write.ALLOWED: Reason.NO_DRIFT,
    Write.UNMANAGED: Reason.NOT_MANAGED,
}


USUAL = Run(
    write=Write.DENIED,
    size_kb=10,
    connections=8,
    rate=0,
    requests=3000,
    seconds=1.0,
    per_second=3000.4,
    p50_ms=0.5,
    p90_ms=1.5,
    p99_ms=2.5,
    max_ms=12.25,
    cpu_us=250.0,
    errors=0,
    first_error="",
    connections_opened=8,
)


def verdict_on(figures, what):
    """Return what the report says about the budget of this name."""
    return next(b.verdict for b in report.budgeted(figures) if b.what == what)


@pytest.mark.parametrize("write", Write)
@pytest.mark.parametrize("size", SIZES)
def test_a_review_has_its_size_and_is_decided_as_meant(write, size):
    """What is measured is what the table says, and not an error or another rule."""
    review = body(write, size)
    request = parse_review(review)
    facts = facts_of(request, Policy(), webhook=Webhook.VALIDATE, key=b"k" * 32, now=datetime.now(UTC))

    assert abs(len(review) / (size * KB) - 1) <= TOLERANCE
    assert decide(facts, Policy()).reason is REASONS[write]


def test_managed_fields_grow_with_the_object():
    """A large object with few managed fields would be cheaper than any real one."""
    small, large = (json.loads(body(Write.DENIED, size)) for size in (10, 300))

    shares = []
    for review in (small, large):
        old = review["request"]["oldObject"]
        shares.append(len(json.dumps(old["metadata"]["managedFields"])) / len(json.dumps(old)))

    assert all(0.25 < share < 0.6 for share in shares)


@pytest.mark.parametrize("size", SIZES)
def test_a_placeholder_names_the_object_wherever_its_name_stands(size):
    """Each number in place of the token is another object of the same application, else it would be recorded once."""
    review = body(Write.DENIED, size, f"web-{TOKEN}")

    request = parse_review(review.replace(TOKEN.encode(), b"0000000042"))
    facts = facts_of(request, Policy(), webhook=Webhook.VALIDATE, key=b"k" * 32, now=datetime.now(UTC))

    assert (request.name, len(facts.managed)) == ("web-0000000042", 1)
    assert decide(facts, Policy()).reason is Reason.DRIFT


def test_judging_is_measured_on_denials_that_are_recorded(monkeypatch):
    """Every denial that is profiled is one that is recorded: of another object, and judged without an error."""
    recorded = []
    monkeypatch.setattr(cpu._NoDisk, "append", lambda _self, record: recorded.append(record))
    monkeypatch.setattr(cpu, "PROFILED", 3)

    cpu.profile()

    assert len({record.name for record in recorded}) == len(recorded) == 3
    assert {record.reason for record in recorded} == {Reason.DRIFT}


def test_what_is_compared_takes_turns():
    """Each load stands beside the floor with as many connections, and half the rate comes when the whole is known."""
    turns = [[(load.write, load.connections) for load in group] for group in groups(10)]

    assert all((FLOOR, connections) in turn for turn in turns[:-1] for _, connections in turn)
    assert (Write.DENIED, 8) in turns[1]
    assert turns[-1] == [(HALF, 8)]


def test_a_figure_stands_beside_its_budget():
    """A budget is kept or not; where more is better, too little is short of it."""
    figures = Figures(
        about={},
        costs=(Cost(call="decide", write=Write.DENIED, size_kb=10, best_us=151, median_us=160),),
        runs=(
            USUAL,
            replace(USUAL, write=FLOOR, per_second=6000.0, cpu_us=100.0),
            replace(USUAL, write=Write.ALLOWED, per_second=2499.0),
        ),
        memory=(Memory(when="at the start", reviews=0, connections=0, mib=59.9),),
    )

    assert verdict_on(figures, "10 KB, denied: parse and decide, CPU") == "over"
    assert verdict_on(figures, "10 KB, denied, 8 connections: rate") == "ok"
    assert verdict_on(figures, "10 KB, allowed, 8 connections: rate") == "short"
    assert verdict_on(figures, "10 KB, denied, 8 connections: CPU, times that of the floor") == "over"
    assert verdict_on(figures, "10 KB, recorded denial, 1 connection: p50") == ""
    assert verdict_on(figures, "memory of the worker, at most") == "ok"


def test_without_any_figure_the_budgets_are_still_listed():
    """Without Go, or without /proc, the report says less and does not fail."""
    budgets = list(report.budgeted(Figures(about={})))

    assert {budget.verdict for budget in budgets} == {""}
    assert report.UNKNOWN in report.print_budgets(budgets)


def test_the_tables_fit_into_120_columns():
    """The widest figures, names and errors there can be."""
    costs = [
        Cost(call="judge again", write=write, size_kb=1024, best_us=123456.0, median_us=234567.0) for write in Write
    ]
    runs = [
        replace(
            USUAL,
            write=write,
            connections=32,
            per_second=12345.0,
            max_ms=12345.0,
            errors=1001,
            first_error="x" * 300,
            cpu_us=98765.0,
        )
        for write in (Write.DENIED, FLOOR, RECORDED, HALF)
    ]
    memory = [Memory(when="after 10,000 connections", reviews=123456, connections=12345, mib=None)]
    figures = Figures(about={}, costs=tuple(costs), runs=tuple(runs), memory=tuple(memory))
    tables = [report.print_costs(costs), report.print_runs(300, runs), report.print_memory(memory)]
    tables.append(report.print_budgets(report.budgeted(figures)))

    assert max(len(line) for table in tables for line in table.splitlines()) <= 120
    assert json.loads(json.dumps(asdict(figures)))["runs"][0]["errors"] == 1001


@pytest.mark.parametrize(
    ("value", "printed"),
    [(None, "-"), (0.0, "0"), (0.125, "0.12"), (9.5, "9.50"), (42.25, "42.2"), (1234.5, "1,234")],
)
def test_a_number_is_as_long_as_it_is_worth(value, printed):
    """Three digits say what such a figure can say."""
    assert report.number(value) == printed


def test_without_go_it_says_what_is_missing(monkeypatch, tmp_path):
    """Who has no Go reads what to install, not a stack trace."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(generator.CannotMeasure, match="install Go"):
        generator.build()
