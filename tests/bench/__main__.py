"""`make bench`: what a decision costs, how the real server does under load, and both beside the budgets.

Nothing here fails because something is slow. The figures of a machine that does other work at the same time say little;
those of one run can be compared with each other.
"""

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.bench import cpu, generator, report, serving
from tests.bench.figures import Cost, Figures, Memory, Run
from tests.bench.reviews import SIZES


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured. Times are seconds, and of one round."""

    sizes: tuple[int, ...]
    cpu_rounds: int
    cpu_time: float
    rounds: int
    run: float
    warm_up: float
    connections: int


QUIET = 0.5  # processes that want to run, over the last minute
WHOLE = Effort(sizes=SIZES, cpu_rounds=9, cpu_time=0.04, rounds=3, run=1.0, warm_up=0.25, connections=10_000)
QUICK = Effort(sizes=(10, 42), cpu_rounds=5, cpu_time=0.02, rounds=1, run=1.0, warm_up=0.2, connections=500)


def main() -> None:
    """Measure and print."""
    options = _options()
    if options.profile:
        cpu.profile().strip_dirs().sort_stats("cumulative").print_stats(25)
        return
    effort = QUICK if options.quick else WHOLE
    figures = Figures(about=_about())
    print("\n".join(f"{name}: {value}" for name, value in figures.about.items()))
    figures = replace(figures, costs=tuple(_costs(effort)))
    _say()
    print(f"\n{report.print_costs(figures.costs)}", flush=True)
    figures = _served(figures, effort)
    budgets = list(report.budgeted(figures))
    print(f"\n{report.print_budgets(budgets)}")
    if options.json:
        told = asdict(figures) | {"budgets": [asdict(b) | {"verdict": b.verdict} for b in budgets]}
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure driftgate, beside its budgets.")
    parser.add_argument("--quick", action="store_true", help="about a minute instead of five")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--profile", action="store_true", help="show in which functions 2,000 denials spend their time")
    return parser.parse_args()


def _costs(effort: Effort) -> list[Cost]:
    return list(cpu.costs(rounds=effort.cpu_rounds, seconds=effort.cpu_time, progress=_say))


def _served(figures: Figures, effort: Effort) -> Figures:
    """Return the figures with those of the server, as far as it can be measured."""
    runs: list[Run] = []
    memory: list[Memory] = []
    try:
        _say("building the load generator")
        program = generator.build()
        _say("starting the servers")
        with serving.started(program, rounds=effort.rounds, seconds=effort.run, warm_up=effort.warm_up) as bench:
            memory = bench.memory
            for size in effort.sizes:
                found = list(bench.serve(size, _say))
                runs += found
                _say()
                print(f"\n{report.print_runs(size, found)}", flush=True)
            _say(f"{effort.connections:,} connections, one review on each")
            bench.connect(effort.connections)
    except generator.CannotMeasure as error:
        _say()
        print(f"\nServing was not measured to the end:\n{error}")
    _say()
    if memory:
        print(f"\n{report.print_memory(memory)}")
    return replace(figures, runs=tuple(runs), memory=tuple(memory))


def _about() -> dict[str, str]:
    """Return what the figures depend on."""
    disk = serving.sync_times()
    load = os.getloadavg()[0]
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "load": f"{load:.1f}"
        if load < QUIET
        else f"{load:.1f}: others use the CPUs, so run it again when they are idle",
        "disk": f"writing and syncing 1 KB takes {disk[0]:.2f} ms (p50), {disk[1]:.2f} ms (p99)",
        "reviews": "sizes are of the whole review, both objects included",
    }


def _say(progress: str = "") -> None:
    """Show on standard error what is done now; on a terminal it gives way to the next."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{progress[:100]}", end="", file=sys.stderr, flush=True)
    elif progress:
        print(f"{time.strftime('%H:%M:%S')} {progress}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")
