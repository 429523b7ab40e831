"""The ASGI entry: answers POST `/validate` and `/mutate` itself, bytes in and bytes out; Flask has the rest.

The server below bounds neither the size of a body nor the time it takes, nor what all bodies take together: this
module does. Judging runs on the event loop, for that is fastest, except where the reviewer says that it may be slow:
then in a thread, of which there are few, so that a cluster that does not answer holds up nobody but its own reviews.

Two kinds of 503. With Retry-After, at once, where there is too much to do: the API server asks again within its
deadline. Without, just ahead of that deadline (it tells us by `?timeout=`), where judging takes too long: no time
is left for another try, and the webhook's failurePolicy decides, with our sentence instead of a bare timeout.
"""

import asyncio
import functools
import re
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

from a2wsgi import WSGIMiddleware

from webhook import app
from webhook.admission import AdmissionRequest, Webhook, parse_review
from webhook.app import MAX_BODY, Reply
from webhook.config import ServerSettings
from webhook.logs import log
from webhook.review import Answer, Reviewer

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application."""

MAX_HELD = 64 * 1024 * 1024  # bytes of all bodies in memory at once
MAX_DISCARDED = 4 * MAX_BODY  # bytes read of a body that is too large, so that its sender reads why and is not cut off
SLOW_THREADS = 16
MAX_SLOW = 48  # slow reviews at once, waiting for a thread included
FLASK_THREADS = 4
DEFAULT_DEADLINE = 10.0  # seconds; what the API server grants where nothing else is configured
WAY_BACK = 0.5  # seconds kept for the answer's way; the API server rounds the deadline that it tells up to a second

_WEBHOOKS = {f"/{webhook}": webhook for webhook in Webhook}


class Entry:
    """The ASGI application around a reviewer."""

    def __init__(self, reviewer: Reviewer, settings: ServerSettings) -> None:
        self._reviewer = reviewer
        self._body_timeout = settings.body_timeout.total_seconds()
        flask: Any = app.create_app(reviewer)
        self._flask = cast("Application", WSGIMiddleware(flask, workers=FLASK_THREADS))  # its types are all TypedDicts
        self._threads = ThreadPoolExecutor(SLOW_THREADS, thread_name_prefix="review")
        self._slow = threading.BoundedSemaphore(MAX_SLOW)
        self._held = 0  # bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        webhook = _WEBHOOKS.get(scope["path"]) if scope["method"] == "POST" else None
        if webhook is None:
            await self._flask(scope, receive, send)
        else:
            await send_reply(await self._reply(webhook, scope, receive), send)

    def close(self) -> None:
        """Close the reviewer, once no thread asks it any more."""
        self._threads.shutdown(cancel_futures=True)
        self._reviewer.close()

    async def _reply(self, webhook: Webhook, scope: Message, receive: Receive) -> Reply:
        deadline = asyncio.get_running_loop().time() + _patience(scope["query_string"])
        chunks: list[bytes] = []
        try:
            refused = await self._read(receive, chunks)
            if refused is None and not _is_json(scope["headers"]):
                refused = app.NOT_JSON
            if refused is not None:
                log("review.refused", status=refused.status, reason=refused.body.decode().strip())
                return refused
            return await self._review(webhook, b"".join(chunks), deadline)
        finally:
            self._held -= sum(map(len, chunks))

    async def _read(self, receive: Receive, chunks: list[bytes]) -> Reply | None:
        """Read the body into `chunks`; return why it is refused, or None."""
        size = 0
        refused = None
        try:
            async with asyncio.timeout(self._body_timeout):
                while size <= MAX_DISCARDED:
                    message = await receive()
                    chunk: bytes = message.get("body", b"")
                    size += len(chunk)
                    if size > MAX_BODY:
                        refused = app.TOO_LARGE
                    elif self._held + len(chunk) > MAX_HELD:
                        refused = app.BUSY
                    if refused is None:
                        self._held += len(chunk)
                        chunks.append(chunk)
                    if message["type"] == "http.disconnect":
                        return app.STALLED  # nobody is there to read it
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            return refused or app.STALLED
        return refused

    async def _review(self, webhook: Webhook, body: bytes, deadline: float) -> Reply:
        try:
            request = parse_review(body)
            if self._reviewer.is_slow(webhook, request):
                answer = await self._judge_slowly(webhook, request, deadline)
            else:
                answer = self._reviewer.judge(webhook, request)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the caller gets a sentence
            return app.failed(error)
        if isinstance(answer, Reply):
            log("review.refused", uid=request.uid, status=answer.status, reason=answer.body.decode().strip())
            return answer
        if answer.recorded is not None:
            await _wait_recorded(request.uid, answer.recorded, deadline)
        return app.judged(answer)

    async def _judge_slowly(self, webhook: Webhook, request: AdmissionRequest, deadline: float) -> Answer | Reply:
        """Judge in a thread: BUSY if too many wait already, OVERDUE if it takes too long."""
        if not self._slow.acquire(blocking=False):
            return app.BUSY
        judging = self._threads.submit(self._reviewer.judge, webhook, request)
        judging.add_done_callback(lambda _: self._slow.release())
        await _wait(judging, deadline)
        if judging.done():
            return judging.result()
        judging.cancel()  # if it still waits for a thread
        return app.OVERDUE


async def send_reply(reply: Reply, send: Send) -> None:
    """Send `reply` as ASGI messages."""
    headers = [(name.lower().encode(), value.encode()) for name, value in reply.headers]
    headers.append((b"content-type", reply.content_type.encode()))
    headers.append((b"content-length", str(len(reply.body)).encode()))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


async def _wait_recorded(uid: str, record: Future[None], deadline: float) -> None:
    if not record.done():
        await _wait(record, min(deadline, asyncio.get_running_loop().time() + app.RECORD_TIMEOUT))
    app.check_recorded(uid, record)


async def _wait(future: Future[Any], until: float) -> None:
    """Wait for a thread's future, which stays as it is if that takes too long: `asyncio.wait_for` would cancel it."""
    loop = asyncio.get_running_loop()
    waiting = asyncio.wrap_future(future)
    waiting.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen to: asyncio does not report it
    await asyncio.wait([waiting], timeout=max(until - loop.time(), 0))


def _is_json(headers: list[tuple[bytes, bytes]]) -> bool:
    kinds = [value for name, value in headers if name == b"content-type"]
    return len(kinds) == 1 and kinds[0].partition(b";")[0].strip().lower() == b"application/json"


@functools.lru_cache(maxsize=64)
def _patience(query: bytes) -> float:
    """Return the seconds that a caller with this query string waits, less the way back. Its form is `timeout=5s`."""
    found = re.search(rb"(?:^|&)timeout=([1-9]\d?)s(?:&|$)", query)
    return (float(found[1]) if found else DEFAULT_DEADLINE) - WAY_BACK
