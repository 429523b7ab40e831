"""The bounds of the ASGI entry: time, size and number. What it answers is in test_app.py."""

import asyncio
import time
from datetime import timedelta

import pytest

from tests.fakes_server import FakeReviewer, call_asgi, review
from webhook import asgi
from webhook.app import MAX_BODY
from webhook.asgi import Entry
from webhook.config import ServerSettings

MIB = 1024 * 1024


@pytest.fixture
def reviewer():
    return FakeReviewer()


@pytest.fixture
def entry(reviewer):
    """An entry that waits a fifth of a second for a body."""
    entry = Entry(reviewer, ServerSettings(body_timeout=timedelta(seconds=0.2)))
    yield entry
    reviewer.let_go.set()
    entry.close()


def ask(entry, *chunks, **how):
    return asyncio.run(call_asgi(entry, "/validate", *chunks, **how))


def test_a_body_that_does_not_end_is_given_up(entry):
    """A caller that stalls gets 408, and its connection is closed."""
    status, headers, _ = ask(entry, b"{", ends=False)

    assert (status, headers["connection"]) == (408, "close")


def test_a_body_is_counted_as_it_comes(entry):
    """Chunks add up to 7 MiB and no more; the caller is told even where its body never ends."""
    exactly = review(size=MAX_BODY - len(review()))
    chunks = [exactly[start : start + MIB] for start in range(0, MAX_BODY, MIB)]

    assert ask(entry, *chunks)[0] == 200
    assert ask(entry, *chunks, b" ")[0] == 413
    assert ask(entry, *[b"x" * MIB] * 100, ends=False)[0] == 413


def test_all_bodies_together_are_bounded(entry):
    """Bodies that wait for their end may not fill the memory: who comes then is asked to come again."""
    large = b"x" * (MAX_BODY - MIB)

    async def crowd():
        stalled = [call_asgi(entry, "/validate", large, ends=False) for _ in range(11)]
        return await asyncio.gather(*stalled, call_asgi(entry, "/validate", review()))

    answers = asyncio.run(crowd())

    assert [status for status, _, _ in answers] == [408] * 10 + [503, 200]
    assert answers[10][1]["retry-after"] == "1"
    assert ask(entry, large)[0] == 400


def test_a_slow_review_holds_nobody_up(entry, reviewer):
    """It is judged in a thread of its own, while others are judged on the loop."""

    async def both():
        slow = asyncio.create_task(call_asgi(entry, "/validate", review("slow-stuck"), query="timeout=10s"))
        await asyncio.sleep(0.05)
        quick = await call_asgi(entry, "/validate", review())
        assert not slow.done()
        reviewer.let_go.set()
        return quick[0], (await slow)[0]

    assert asyncio.run(both()) == (200, 200)
    assert len(reviewer.threads) == 2


def test_a_review_that_takes_too_long_is_answered_before_its_caller_gives_up(entry):
    """Without Retry-After: there is no time left for another try."""
    started = time.monotonic()

    status, headers, answer = ask(entry, review("slow-stuck"), query="x=1&timeout=1s")

    assert (status, answer) == (503, b"driftgate could not judge this write in time\n")
    assert "retry-after" not in headers
    assert 0.4 < time.monotonic() - started < 3


def test_too_many_slow_reviews_are_asked_to_come_again(entry, reviewer):
    """At once and with Retry-After, so that they do not queue until their deadline; the others go on."""

    async def crowd():
        slow = [call_asgi(entry, "/validate", review("slow-stuck")) for _ in range(asgi.MAX_SLOW + 2)]
        waiting = [asyncio.create_task(one) for one in slow]
        await asyncio.sleep(0.1)
        refused = [task.result() for task in waiting if task.done()]
        quick = await call_asgi(entry, "/validate", review())
        reviewer.let_go.set()
        answers = await asyncio.gather(*waiting)
        again = await call_asgi(entry, "/validate", review("slow"))
        return refused, quick[0], [status for status, _, _ in answers].count(200), again[0]

    refused, quick, answered, again = asyncio.run(crowd())

    assert [(status, headers["retry-after"]) for status, headers, _ in refused] == [(503, "1")] * 2
    assert (quick, answered, again) == (200, asgi.MAX_SLOW, 200)
    assert len(reviewer.threads) == asgi.SLOW_THREADS + 1


def test_what_was_given_up_does_not_start_later(entry, reviewer):
    """A review that still waits for a thread when its time is over is never judged."""

    async def crowd():
        stuck = [
            call_asgi(entry, "/validate", review("slow-stuck"), query="timeout=1s") for _ in range(asgi.SLOW_THREADS)
        ]
        return await asyncio.gather(*stuck, call_asgi(entry, "/validate", review("slow"), query="timeout=1s"))

    assert {status for status, _, _ in asyncio.run(crowd())} == {503}
    reviewer.let_go.set()
    assert ask(entry, review("slow"))[0] == 200
    assert reviewer.judged == ["slow-stuck"] * asgi.SLOW_THREADS + ["slow"]


def test_closing_the_entry_closes_the_reviewer(entry, reviewer):
    """So that what it has not written yet is written."""
    entry.close()

    assert reviewer.closed
