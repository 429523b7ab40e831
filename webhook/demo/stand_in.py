"""A stand-in for the API server, for a demo on a machine without one: as much of it as driftgate asks for.

Plain HTTP on loopback, objects in memory: GET and list, PATCH by JSON Patch, SubjectAccessReview, discovery. It calls
no webhook, knows no users but one who may break the glass, and is no example of how an API server works.
"""

import json
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs

from webhook.admission import Object, PatchOperation, labels

_ACCESS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
_DISCOVERY: dict[str, Object] = {
    "/api/v1": {"resources": []},
    "/apis": {"groups": [{"name": "apps", "preferredVersion": {"version": "v1"}}]},
    "/apis/apps/v1": {"resources": [{"name": "deployments", "verbs": ["get", "list", "patch"]}]},
}


class StandIn:
    """Holds Deployments. `with` starts and ends it."""

    def __init__(self, *, may_break_glass: str) -> None:
        self._may_break_glass = may_break_glass
        self._objects: dict[str, Object] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._serving = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._serving.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._serving.join()
        self._server.server_close()

    def write_kubeconfig(self, path: Path) -> None:
        """Write how driftgate finds this."""
        cluster = {"server": f"http://127.0.0.1:{self._server.server_port}"}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "stand-in", "cluster": cluster}],
            "users": [{"name": "nobody", "user": {}}],
            "contexts": [{"name": "stand-in", "context": {"cluster": "stand-in", "user": "nobody"}}],
            "current-context": "stand-in",
        }
        path.write_text(json.dumps(content), encoding="utf-8")

    def store(self, deployment: Object) -> None:
        """Keep a Deployment, in place of the one of its name."""
        meta = deployment["metadata"]
        with self._lock:
            self._objects[f"/apis/apps/v1/namespaces/{meta['namespace']}/deployments/{meta['name']}"] = deployment

    def stored(self) -> Object:
        """Return the Deployment that was stored first."""
        with self._lock:
            found: Object = json.loads(json.dumps(next(iter(self._objects.values()))))
            return found

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Return status and content."""
        path, _, query = path.partition("?")
        with self._lock:
            if method == "POST" and path == _ACCESS:
                return 201, {"status": {"allowed": body["spec"]["user"] == self._may_break_glass}}
            if method == "PATCH" and path in self._objects:
                return self._patch(path, body)
            found = self._get(path, query) if method == "GET" else None
            return (404, {"kind": "Status", "code": 404}) if found is None else (200, found)

    def _get(self, path: str, query: str) -> Object | None:
        if path == "/apis/apps/v1/deployments":
            label, _, value = parse_qs(query).get("labelSelector", ["="])[0].partition("=")
            return {"items": [found for found in self._objects.values() if labels(found).get(label) == value]}
        return _DISCOVERY.get(path) or self._objects.get(path)

    def _patch(self, path: str, patch: Sequence[PatchOperation]) -> tuple[int, Object]:
        patched = patched_with(self._objects[path], patch)
        if patched is None:
            return 422, {"kind": "Status", "code": 422}
        self._objects[path] = patched
        return 200, patched


def patched_with(obj: Object, patch: Sequence[PatchOperation]) -> Object | None:
    """Return the object with a JSON Patch of members of maps applied; None if a `test` in it fails."""
    copy: Object = json.loads(json.dumps(obj))
    for operation in patch:
        *parents, name = (part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:])
        place = copy
        for parent in parents:
            place = place[parent]
        if operation["op"] == "add":
            place[name] = operation["value"]
        elif name not in place or (operation["op"] == "test" and place[name] != operation["value"]):
            return None
        elif operation["op"] == "remove":
            del place[name]
    return copy


def _handler(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            status, content = stand_in.answer(
                self.command, self.path, json.loads(self.rfile.read(length)) if length else None
            )
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = _answer  # noqa: N815 -- names that http.server looks for

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- its signature
            pass

    return Handler
