"""The few calls to the API server that starting a control plane takes, made as its admin."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import TYPE_CHECKING, Any

from webhook.demo.control_plane.binaries import ControlPlaneError
from webhook.demo.control_plane.layout import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from webhook.demo.control_plane.layout import Layout


class Api:
    """Calls to the API server of this layout; its files need to be there, the server need not be up."""

    def __init__(self, layout: Layout) -> None:
        self._port = layout.apiserver_port
        self._tls = ssl.create_default_context(cafile=layout.pki("ca.crt"))
        self._tls.load_cert_chain(layout.pki("admin.crt"), layout.pki("admin.key"))

    def why_not(self, path: str) -> str | None:
        """Return None if a GET of the path answers 200, else what happened instead."""
        try:
            status, answer = self._call("GET", path)
        except OSError as error:
            return str(error)
        return None if status == http.HTTPStatus.OK else f"{status} {answer.decode()}"

    def create(self, path: str, body: Mapping[str, object]) -> Any:
        """POST an object and return the answer, decoded; an object that is there already is left as it is."""
        status, answer = self._call("POST", path, json.dumps(body))
        if status not in {http.HTTPStatus.CREATED, http.HTTPStatus.CONFLICT}:
            message = f"POST {path} answered {status}: {answer.decode()}"
            raise ControlPlaneError(message)
        return json.loads(answer)

    def _call(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection(LOOPBACK, self._port, timeout=10, context=self._tls)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()
