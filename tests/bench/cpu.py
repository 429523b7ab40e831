"""What one decision costs in CPU time, in this process: no server, no disk, no cluster."""

import cProfile
import gc
import os
import pstats
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from statistics import median
from unittest.mock import patch

from tests.bench.figures import Cost
from tests.bench.reviews import LARGEST, SIZES, TOKEN, Write, body
from webhook import logs
from webhook.admission import GroupVersionResource, Object, UserInfo, Webhook, parse_review
from webhook.decision import decide
from webhook.errors import ClusterUnavailable
from webhook.facts import facts_of
from webhook.policy import Policy
from webhook.record import Record
from webhook.review import AdmissionReviewer

PROFILED = 2000
_KEY = b"k" * 32
_NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
_POLICY = Policy()

Measured = Callable[[], None]
"""What stands between two looks at the clock."""
Prepare = Callable[[int], Measured]
"""Makes, before the clock is looked at, what does a thing so many times."""


class _NoDisk:
    """An audit log that forgets."""

    def append(self, _record: Record) -> Future[None]:
        """Say that the record is kept."""
        kept: Future[None] = Future()
        kept.set_result(None)
        return kept

    def close(self) -> None:
        """Do nothing."""


class _NoCluster:
    """A cluster that is not there: none of these writes has to ask it anything."""

    def get(self, _resource: GroupVersionResource, _namespace: str, _name: str) -> Object | None:
        """Raise ClusterUnavailable."""
        raise ClusterUnavailable("there is no cluster")

    def may_break_glass(self, _user: UserInfo, _resource: GroupVersionResource, _namespace: str, _name: str) -> bool:
        """Raise ClusterUnavailable."""
        raise ClusterUnavailable("there is no cluster")


def costs(*, rounds: int, seconds: float, progress: Callable[[str], None]) -> Iterator[Cost]:
    """Yield the cost of each call, for each write and size, over `rounds` of `seconds` each."""
    with _undisturbed():
        for size in (*SIZES, LARGEST):
            for write in Write:
                for call, prepare in _calls(write, size):
                    progress(f"CPU of {call}, {size} KB, {write}")
                    yield _cost(prepare, call, write, size, rounds=rounds, seconds=seconds)


def profile(size: int = 10) -> pstats.Stats:
    """Return where the time of judging denials goes, each of another object."""
    with _undisturbed():
        judge = _judge(Write.DENIED, size)(PROFILED)
        profiler = cProfile.Profile()
        profiler.runcall(judge)
    return pstats.Stats(profiler)


def _calls(write: Write, size: int) -> Iterator[tuple[str, Prepare]]:
    yield "decide", partial(_decide, body(write, size))
    yield "judge", _judge(write, size)
    if write is Write.DENIED:
        yield "judge again", partial(_judge_again, body(write, size))


def _decide(review: bytes, times: int) -> Measured:
    def run() -> None:
        for _ in range(times):
            facts = facts_of(parse_review(review), _POLICY, webhook=Webhook.VALIDATE, key=_KEY, now=_NOW)
            decide(facts, _POLICY)

    return run


def _judge(write: Write, size: int) -> Prepare:
    template = body(write, size, f"web-{TOKEN}")

    def prepare(times: int) -> Measured:
        return _judging([template.replace(TOKEN.encode(), b"%0*d" % (len(TOKEN), n)) for n in range(times)])

    return prepare


def _judge_again(review: bytes, times: int) -> Measured:
    return _judging([review] * times)


def _judging(reviews: list[bytes]) -> Measured:
    reviewer = AdmissionReviewer(_POLICY, seal_key=_KEY, cluster=_NoCluster(), audit_log=_NoDisk())

    def run() -> None:
        for review in reviews:
            request = parse_review(review)
            reviewer.is_slow(Webhook.VALIDATE, request)
            reviewer.judge(Webhook.VALIDATE, request)

    return run


def _cost(prepare: Prepare, call: str, write: Write, size: int, *, rounds: int, seconds: float) -> Cost:
    _clocked(prepare(3))
    once = _clocked(prepare(3)) / 3
    times = max(1, round(seconds / once))
    found = sorted(_clocked(prepare(times)) / times * 1e6 for _ in range(rounds))
    return Cost(call=call, write=write, size_kb=size, best_us=found[0], median_us=median(found))


def _clocked(run: Measured) -> float:
    gc.collect()
    started = time.process_time()
    run()
    return max(time.process_time() - started, 1e-9)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the collector off what is there to stay, as the server does, and the log off the terminal."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    gc.collect()
    gc.freeze()
    try:
        with patch.object(logs, "STANDARD_OUTPUT", nowhere):
            yield
    finally:
        gc.unfreeze()
        os.close(nowhere)
