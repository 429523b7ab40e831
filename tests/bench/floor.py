"""The floor: the same server around an application that allows every review without a look at it.

Run as a program: `python -m tests.bench.floor CONFIG`.
"""

import sys
from pathlib import Path

from webhook import config
from webhook.asgi import Application, Message, Receive, Send
from webhook.server import serve

_ANSWER = b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"0","allowed":true}}'
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_ANSWER))]


async def allow(_scope: Message, receive: Receive, send: Send) -> None:
    """Answer one request."""
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _ANSWER})


def make_app(_config: config.Config) -> Application:
    """Return the application, with malloc where driftgate's own worker has it from its imports on.

    uvloop reads into 256 KB at a time. glibc maps and unmaps that for each read, until a block so large was freed once.
    """
    bytes(1024 * 1024)
    return allow


if __name__ == "__main__":
    serve(config.load(Path(sys.argv[1])), make_app)
