"""The figures in plain text of at most 120 columns, and beside the budgets."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tests.bench.figures import FLOOR, Cost, Figures, Memory, Run
from tests.bench.reviews import LARGEST, Write
from tests.bench.serving import HALF, RECORDED

UNKNOWN = "-"
_FLAT = 2
"""MiB that memory may grow and still count as flat."""
_LONGEST = 80
"""Characters of an error that are shown."""
_STEEPEST = 1.5
"""How much more a KB may cost at 1 MiB than at 42 KB for the cost to count as linear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgeted:
    """One figure beside its budget. `at_least` tells that more is better."""

    what: str
    value: float | None
    limit: float
    unit: str
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """Return `ok`; `over` or `short` if the budget is not kept; nothing if there is no figure."""
        if self.value is None:
            return ""
        if self.at_least:
            return "ok" if self.value >= self.limit else "short"
        return "ok" if self.value <= self.limit else "over"


def budgeted(figures: Figures) -> Iterator[Budgeted]:
    """Yield each budget with its figure."""
    yield from _costs_budgeted(figures)
    for write in (Write.DENIED, Write.ALLOWED):
        yield from _serving_budgeted(figures, write)
    recorded, half = figures.run(RECORDED, 10, 1), figures.run(HALF, 10, 8)
    yield _at_most("10 KB, recorded denial, 1 connection: p50", recorded.p50_ms if recorded else None, 1.5, "ms")
    yield _at_most("10 KB, recorded denial, 1 connection: p99", recorded.p99_ms if recorded else None, 5, "ms")
    yield _at_most("10 KB, denied, 8 connections at half rate: p99", half.p99_ms if half else None, 5, "ms")
    yield _at_most("errors in all runs", sum(run.errors for run in figures.runs) if figures.runs else None, 0, "")
    known = [m.mib for m in figures.memory if m.mib is not None]
    yield _at_most("memory of the worker, at most", max(known, default=None), 60, "MiB")
    yield _at_most("memory, grown by the last connections", known[-1] - known[-2] if known[1:] else None, _FLAT, "MiB")


def _costs_budgeted(figures: Figures) -> Iterator[Budgeted]:
    for write in (Write.DENIED, Write.ALLOWED):
        cost = figures.cost("decide", write, 10)
        yield _at_most(f"10 KB, {write}: parse and decide, CPU", cost.best_us if cost else None, 150, "us")
    large, middle = figures.cost("judge", Write.DENIED, LARGEST), figures.cost("judge", Write.DENIED, 42)
    yield _at_most("1 MiB, denied: judge, CPU", large.best_us / 1000 if large else None, 40, "ms")
    steepness = large.best_us / large.size_kb / (middle.best_us / middle.size_kb) if large and middle else None
    yield _at_most("cost of a KB at 1 MiB against 42 KB", steepness, _STEEPEST, "x")


def _serving_budgeted(figures: Figures, write: str) -> Iterator[Budgeted]:
    one, eight, floor = figures.run(write, 10, 1), figures.run(write, 10, 8), figures.run(FLOOR, 10, 8)
    rate, cpu = ratios(eight, floor) if eight and floor else (None, None)
    yield _at_most(f"10 KB, {write}, 1 connection: p50", one.p50_ms if one else None, 0.6, "ms")
    named = f"10 KB, {write}, 8 connections"
    yield _at_most(f"{named}: p99", eight.p99_ms if eight else None, 8, "ms")
    yield replace(_at_most(f"{named}: rate", eight.per_second if eight else None, 2500, "/s"), at_least=True)
    yield _at_most(f"{named}: CPU of the server", eight.cpu_us if eight else None, 300, "us")
    yield _at_most(f"{named}: rate, times slower than the floor", rate, 2, "x")
    yield _at_most(f"{named}: CPU, times that of the floor", cpu, 2, "x")


def _at_most(what: str, value: float | None, limit: float, unit: str) -> Budgeted:
    return Budgeted(what=what, value=value, limit=limit, unit=unit)


def ratios(run: Run, floor: Run) -> tuple[float | None, float | None]:
    """Return how many times slower than the floor a run is, and how many times the floor's CPU it takes."""
    rate = floor.per_second / run.per_second if run.per_second else None
    return rate, run.cpu_us / floor.cpu_us if run.cpu_us and floor.cpu_us else None


def print_costs(costs: Sequence[Cost]) -> str:
    """Return the table of CPU costs: a row for each size and call, a column for each write."""
    found = {(c.size_kb, c.call, c.write): c for c in costs}
    rows = [["", "", *Write]]
    for size, call in dict.fromkeys((c.size_kb, c.call) for c in costs):
        cells = [found.get((size, call, write)) for write in Write]
        rows.append(
            [f"{size:,} KB", call, *(f"{number(c.best_us)} ({number(c.median_us)})" if c else "" for c in cells)]
        )
    return _table("CPU of one review in this process, us: best round (median round)", rows, left=2)


def print_runs(size: int, runs: Sequence[Run]) -> str:
    """Return the table of the runs with reviews of one size."""
    head = ["", "conns", "requests/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "CPU us", "slower", "CPU x", "errors"]
    floors = {run.connections: run for run in runs if run.write == FLOOR}
    rows = [head, *(_run_row(run, floors.get(run.connections)) for run in runs)]
    title = f"Serving {size} KB reviews over TLS, one worker (slower, CPU x: times the floor's)"
    problems = [f"  {run.write}, {run.connections}: {run.first_error.strip()[:_LONGEST]}" for run in runs if run.errors]
    return "\n".join([_table(title, rows), *problems])


def _run_row(run: Run, floor: Run | None) -> list[str]:
    slower, cpu = ratios(run, floor) if floor and floor is not run and not run.rate else (None, None)
    times = (number(value) for value in (run.p50_ms, run.p90_ms, run.p99_ms, run.max_ms))
    return [
        *(run.write, str(run.connections), f"{run.per_second:,.0f}", *times),
        *(number(run.cpu_us), number(slower), number(cpu), str(run.errors)),
    ]


def print_memory(memory: Sequence[Memory]) -> str:
    """Return the table of what memory the webhook's worker had when."""
    rows = [["", "reviews", "connections", "MiB"]]
    rows += [[m.when, f"{m.reviews:,}", f"{m.connections:,}", number(m.mib)] for m in memory]
    return _table("Memory of the webhook's worker (VmRSS)", rows)


def print_budgets(budgets: Iterable[Budgeted]) -> str:
    """Return the table of figures beside their budgets."""
    rows = [["", "measured", "budget", ""]]
    for budget in budgets:
        limit = f"{'>=' if budget.at_least else '<='} {budget.limit:,g} {budget.unit}"
        rows.append([budget.what, f"{number(budget.value)} {budget.unit}", limit, budget.verdict])
    return _table("Budgets", rows)


def number(value: float | None) -> str:
    """Return a figure with three digits or more."""
    if value is None:
        return UNKNOWN
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _table(title: str, rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return the rows as columns: the first `left` ones left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [title]
    for row in rows:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)
