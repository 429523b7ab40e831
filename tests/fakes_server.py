"""A reviewer that does what the object's name says, and a caller for ASGI applications.

Run as a program it is a server with that reviewer: `python tests/fakes_server.py CONFIG`.
"""

import asyncio
import json
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

from webhook.admission import AdmissionResponse
from webhook.errors import MalformedReview
from webhook.review import Answer

SECRET = "the value of a secret"


def review(name="web", size=0):
    """Return the body of a review of this name, about `size` bytes longer than it has to be."""
    request = {
        "uid": "e911857d",
        "kind": {"group": "apps", "version": "v1", "kind": "Deployment"},
        "resource": {"group": "apps", "version": "v1", "resource": "deployments"},
        "operation": "CREATE",
        "name": name,
        "object": {"metadata": {"name": name, "annotations": {"long": "x" * size}}},
    }
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()


class FakeReviewer:
    """Denies every write. `reason` is why it is not ready."""

    def __init__(self, reason=None):
        self.reason = reason
        self.closed = False
        self.judged = []
        self.threads = set()
        self.let_go = threading.Event()

    def is_slow(self, webhook, request):  # noqa: ARG002 -- the names are the Protocol's
        return request.requested_name.startswith("slow")

    def judge(self, webhook, request):
        self.judged.append(request.requested_name)
        self.threads.add(threading.current_thread())
        recorded = None
        match request.requested_name:
            case "slow":
                time.sleep(0.05)
            case "slow-second":
                time.sleep(1)
            case "slow-stuck":
                self.let_go.wait(10)
            case "slow-raises" | "raises":
                raise RuntimeError(SECRET)
            case "malformed-inside":
                raise MalformedReview("request.object is no Kubernetes object")
            case "recorded":
                recorded = Future()
                threading.Timer(0.05, recorded.set_result, [None]).start()
            case "record-fails":
                recorded = Future()
                recorded.set_exception(OSError(SECRET))
            case "record-never":
                recorded = Future()
        response = AdmissionResponse(uid=request.uid, allowed=False, message=f"denied at {webhook}")
        return Answer(response.encode(), recorded)

    def ready(self):
        return self.reason

    def close(self):
        self.closed = True
        self.let_go.set()


async def call_asgi(app, path, *chunks, method="POST", kind="application/json", query="", ends=True):
    """Return status, headers and body of the answer. Where the body does not end, the caller waits in silence."""
    incoming = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if ends:
        incoming.append({"type": "http.request", "body": b"", "more_body": False})
    sent = []

    async def receive():
        if not incoming:
            await asyncio.sleep(30)
        return incoming.pop(0)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(b"content-type", kind.encode())] if kind else [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await app(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])


def main():
    from webhook import config
    from webhook.server import serve_webhook

    serve_webhook(config.load(Path(sys.argv[1])), lambda _: FakeReviewer())


if __name__ == "__main__":
    main()
