"""What is measured, as values: nothing here measures or prints. Times have their unit in the name."""

from dataclasses import dataclass

FLOOR = "floor"
"""The same server with an application that always gives the same answer: what serving costs, whatever is served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """CPU time of one call in this process."""

    call: str
    """`decide`: parse, facts, decide. `judge`: all that is done but HTTP; `judge again`: for a denial seen before."""
    write: str
    size_kb: int
    best_us: float
    median_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One load on a server. `rate` is how many a second were asked for, 0: as many as can be.

    Where a load was repeated, it is the round with the median p50.
    """

    write: str
    size_kb: int
    connections: int
    rate: float
    requests: int
    seconds: float
    per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    cpu_us: float | None
    """CPU time of the server's worker for one request; None where it can't be known."""
    errors: int
    first_error: str
    connections_opened: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident memory of the webhook's worker at one moment, and what it had done by then. None: can't be known."""

    when: str
    reviews: int
    connections: int
    mib: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """All of one run of the bench. Parts that were not measured are empty."""

    about: dict[str, str]
    costs: tuple[Cost, ...] = ()
    runs: tuple[Run, ...] = ()
    memory: tuple[Memory, ...] = ()

    def cost(self, call: str, write: str, size_kb: int) -> Cost | None:
        """Return what a call cost, None if it was not measured."""
        return next((c for c in self.costs if (c.call, c.write, c.size_kb) == (call, write, size_kb)), None)

    def run(self, write: str, size_kb: int, connections: int) -> Run | None:
        """Return the run of this kind, None if there was none."""
        wanted = (write, size_kb, connections)
        return next((r for r in self.runs if (r.write, r.size_kb, r.connections) == wanted), None)
