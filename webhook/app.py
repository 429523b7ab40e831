"""The Flask side: health, readiness, and `/validate` and `/mutate` for any WSGI server.

Under our own server `asgi.py` answers those two before Flask sees them. Both give the same answers, so what is said
to a caller stands here once, as `Reply` values: one sentence of plain text, never a stack trace.

Easy to get wrong: a review is answered even where its record could not be kept in time. A denial is still a denial.
"""

import concurrent.futures
from concurrent.futures import Future
from dataclasses import dataclass

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from webhook.admission import Webhook, parse_review
from webhook.errors import MalformedReview
from webhook.logs import log, told
from webhook.review import Answer, Reviewer

MAX_BODY = 7 * 1024 * 1024  # bytes; a review holds two objects, so the API server sends up to about this
RECORD_TIMEOUT = 3.0  # seconds that an answer waits for its record
RETRY_AFTER = ("Retry-After", "1")  # seconds; with it the API server asks again, within its deadline
CLOSE = ("Connection", "close")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What goes back over HTTP."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


def sentence(status: int, text: str, *headers: tuple[str, str]) -> Reply:
    """Return a reply of one sentence."""
    return Reply(status=status, body=f"{text}\n".encode(errors="replace"), headers=headers)


FINE = sentence(200, "ok")
NOT_FOUND = sentence(404, "there is nothing here: POST to /validate or /mutate, GET /healthz or /readyz")
WRONG_METHOD = sentence(405, "this path is asked otherwise: POST to /validate or /mutate, GET /healthz or /readyz")
STALLED = sentence(408, "the body did not arrive in time", CLOSE)
TOO_LARGE = sentence(413, f"the body is larger than {MAX_BODY // 1024 // 1024} MiB", CLOSE)
NOT_JSON = sentence(415, "the body must be an AdmissionReview, sent as application/json")
FAILED = sentence(500, "driftgate failed over this request; its log says where")
BUSY = sentence(503, "driftgate has too much to do at the moment", RETRY_AFTER)
OVERDUE = sentence(503, "driftgate could not judge this write in time")


def judged(answer: Answer) -> Reply:
    """Return the reply to a review that was judged."""
    return Reply(status=200, body=answer.body, content_type="application/json")


def failed(error: Exception) -> Reply:
    """Return what is replied to a review that `error` kept from being judged, and log it."""
    if isinstance(error, MalformedReview):
        log("review.malformed", reason=str(error))
        return sentence(400, str(error))
    log("review.failed", **told(error))
    return FAILED


def check_recorded(uid: str, record: Future[None]) -> None:
    """Log it where the record of the review `uid` was not kept, or not yet."""
    if not record.done():
        log("record.late", uid=uid, seconds=RECORD_TIMEOUT)
    elif record.cancelled():
        log("record.failed", uid=uid, error="cancelled")
    elif error := record.exception():
        log("record.failed", uid=uid, **told(error))


def create_app(reviewer: Reviewer) -> Flask:
    """Return the Flask application that asks `reviewer`."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False

    @app.get("/healthz")
    def healthz() -> Response:
        return _response(FINE)

    @app.get("/readyz")
    def readyz() -> Response:
        reason = reviewer.ready()
        return _response(sentence(503, reason) if reason else FINE)

    for webhook in Webhook:
        app.add_url_rule(
            f"/{webhook}", webhook, lambda webhook=webhook: _response(_review(reviewer, webhook)), methods=["POST"]
        )
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, lambda error: _response(failed(error)))
    return app


def _review(reviewer: Reviewer, webhook: Webhook) -> Reply:
    body = request.get_data(cache=False)
    if request.mimetype != "application/json":
        return NOT_JSON
    review = parse_review(body)
    answer = reviewer.judge(webhook, review)
    if answer.recorded is not None:
        concurrent.futures.wait([answer.recorded], timeout=RECORD_TIMEOUT)
        check_recorded(review.uid, answer.recorded)
    return judged(answer)


def _http_error(error: HTTPException) -> Response:
    known = {reply.status: reply for reply in (NOT_FOUND, WRONG_METHOD, TOO_LARGE)}
    status = error.code or 500
    response = _response(known.get(status) or sentence(status, error.name.lower()))
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
    return response


def _response(reply: Reply) -> Response:
    return Response(reply.body, status=reply.status, content_type=reply.content_type, headers=dict(reply.headers))
