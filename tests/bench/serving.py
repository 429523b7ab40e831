"""How the real server does under load: `driftgate webhook` in processes of its own, and beside it the floor.

Both run all the time, each with one worker. The load goes to one after the other in short rounds, so that what else the
machine does meets both alike.
"""

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from tests.bench import generator
from tests.bench.figures import FLOOR, Memory, Run
from tests.bench.reviews import TOKEN, Write, body
from webhook.certs import make_ca, make_seal_key, make_serving_pair, write_pair
from webhook.demo.leash import Leashed

RECORDED = "denied, recorded"
"""Denials of another object each: every one is on disk before it is answered."""
HALF = "denied, half rate"
"""Denials at half the rate that the server can do, at random times."""
CONNECTIONS = (1, 8, 32)

_HOST = "127.0.0.1"
_START = 30.0  # seconds
_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked over how many connections. `write` is a `Write`, or FLOOR, RECORDED, HALF."""

    write: str
    size: int
    connections: int

    @property
    def server(self) -> str:
        """Return the name of the server that is asked."""
        return FLOOR if self.write == FLOOR else "driftgate"

    @property
    def expected(self) -> str:
        """Return what every answer contains."""
        return '"allowed":true' if self.write in {FLOOR, Write.ALLOWED} else '"allowed":false'

    @property
    def review(self) -> bytes:
        """Return the body that is sent."""
        if self.write == RECORDED:
            return body(Write.DENIED, self.size, f"web-{TOKEN}")
        return body(Write.ALLOWED if self.write == Write.ALLOWED else Write.DENIED, self.size)


def groups(size: int) -> list[list[Load]]:
    """Return what is done with reviews of one size: the loads of a group are to be compared, and so take turns."""
    alike = (Write.DENIED, FLOOR, Write.ALLOWED, RECORDED)
    compared = [[Load(write=write, size=size, connections=n) for write in alike] for n in CONNECTIONS]
    return [*compared, [Load(write=HALF, size=size, connections=8)]]


@dataclass(slots=True, kw_only=True)
class Served:
    """A server that runs. `worker` is the process that answers."""

    process: Leashed
    port: int
    worker: int
    reviews: int = 0
    connections: int = 0

    @property
    def memory(self) -> float | None:
        """Return the resident memory of the worker in MiB."""
        try:
            status = Path(f"/proc/{self.worker}/status").read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        return int(found[1]) / 1024 if found else None

    def forget_log(self) -> None:
        """Empty the log, to which the server appends a line for each review."""
        os.truncate(self.process.log, 0)


@dataclass(slots=True, kw_only=True)
class Bench:
    """Both servers and the generator. `memory` grows with what is measured."""

    program: Path
    folder: Path
    rounds: int
    seconds: float
    warm_up: float
    servers: dict[str, Served] = field(default_factory=dict)
    memory: list[Memory] = field(default_factory=list)

    def serve(self, size: int, progress: Callable[[str], None]) -> Iterator[Run]:
        """Yield a run for each load with reviews of this size."""
        capacity = 0.0
        for loads in groups(size):
            found: list[list[Run]] = [[] for _ in loads]
            for turn in range(self.rounds):
                for load, runs in zip(loads, found, strict=True):
                    progress(f"{size} KB, {load.write}, connections: {load.connections}, round {turn + 1}")
                    runs.append(self._run(load, round(capacity / 2) if load.write == HALF else 0))
            for runs in found:
                run = sorted(runs, key=lambda run: run.p50_ms)[len(runs) // 2]
                if (run.write, run.connections) == (Write.DENIED, 8):
                    capacity = run.per_second
                yield replace(run, errors=sum(r.errors for r in runs), first_error=max(r.first_error for r in runs))
        self.note_memory(f"after {size} KB")

    def connect(self, times: int) -> None:
        """Open a connection of its own for each of so many reviews."""
        load = Load(write=Write.DENIED, size=1, connections=8)
        self._ask(load, seconds=times / 50, count=times, once=True)
        self.note_memory(f"after {times:,} connections")

    def note_memory(self, when: str) -> None:
        """Take down how much memory the webhook's worker has now."""
        server = self.servers["driftgate"]
        noted = Memory(when=when, reviews=server.reviews, connections=server.connections, mib=server.memory)
        self.memory.append(noted)

    def _run(self, load: Load, rate: float) -> Run:
        found = self._ask(load, seconds=self.seconds, rate=rate)
        cpu = found["server_cpu_seconds"]
        known = cpu >= 0 and found["requests"] > 0
        kept = ("requests", "seconds", "per_second", "p50_ms", "p90_ms", "p99_ms", "max_ms", "errors", "first_error")
        return Run(
            write=load.write,
            size_kb=load.size,
            connections=load.connections,
            rate=rate,
            cpu_us=cpu / found["requests"] * 1e6 if known else None,
            connections_opened=found["connections_opened"],
            **{name: found[name] for name in kept},
        )

    def _ask(self, load: Load, **options: Any) -> dict[str, Any]:
        server = self.servers[load.server]
        review = self.folder / "review.json"
        review.write_bytes(load.review)
        server.forget_log()
        found = generator.run(
            self.program,
            url=f"https://{_HOST}:{server.port}/validate",
            ca=self.folder / "certificates" / "ca.crt",
            body=review,
            expect=load.expected,
            token=TOKEN if load.write == RECORDED else "",
            connections=load.connections,
            pid=server.worker,
            warm_up=self.warm_up,
            **options,
        )
        server.reviews += found["requests"]
        server.connections += found["connections_opened"]
        return found


@contextmanager
def started(program: Path, *, rounds: int, seconds: float, warm_up: float) -> Iterator[Bench]:
    """Start both servers, and stop them at the end. Raises CannotMeasure if one does not start.

    The outbox is in the user's cache, for that is on a disk; the logs are in memory where they can be.
    """
    cache = generator.cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=cache)))
        in_memory = _MEMORY if os.access(_MEMORY, os.W_OK) else None
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="driftgate-bench-", dir=in_memory)))
        bench = Bench(program=program, folder=folder, rounds=rounds, seconds=seconds, warm_up=warm_up)
        config = _write_configuration(folder)
        for name, command in {
            "driftgate": ("-m", "webhook", "webhook", "--config", str(config)),
            FLOOR: ("-m", "tests.bench.floor", str(config)),
        }.items():
            process = Leashed.start(
                name, [sys.executable, *command], log=logs / f"{name}.log", environment=os.environ, grace=20
            )
            stack.callback(process.stop)
            stack.callback(process.let_go)
            bench.servers[name] = _wait_started(process)
        bench.note_memory("at the start")
        yield bench


def sync_times(times: int = 200) -> tuple[float, float]:
    """Return how long it takes to write 1 KB where the outbox will be, sync included: p50 and p99 in ms."""
    cache = generator.cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    found = []
    with tempfile.TemporaryFile(dir=cache, buffering=0) as file:
        for _ in range(times):
            started = time.perf_counter()
            file.write(b"x" * 1024)
            os.fsync(file.fileno())
            found.append((time.perf_counter() - started) * 1000)
    found.sort()
    return found[times // 2], found[times * 99 // 100]


def _write_configuration(folder: Path) -> Path:
    now = datetime.now(UTC)
    authority = make_ca("driftgate bench", 1, now=now)
    write_pair(folder / "certificates", make_serving_pair(authority, [_HOST], 1, now=now), authority)
    make_seal_key(folder / "seal" / "key")
    config = folder / "config.yaml"
    settings = {
        "state_directory": str(folder / "state"),
        "break_glass": {"key_file": str(folder / "seal" / "key")},
        "server": {"host": _HOST, "port": 0, "certificates": str(folder / "certificates"), "drain": "2s"},
    }
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return config


def _wait_started(process: Leashed) -> Served:
    end = time.monotonic() + _START
    while time.monotonic() < end and process.exit_code is None:
        for line in process.log.read_text(encoding="utf-8", errors="replace").splitlines():
            if '"server.started"' in line:
                told = json.loads(line)
                return Served(process=process, port=told["port"], worker=told["pid"])
        time.sleep(0.05)
    raise generator.CannotMeasure(f"{process.name} did not start:\n{process.tail()}")
