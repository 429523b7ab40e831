"""The server: gunicorn with a uvicorn worker over TLS, which drains before it leaves and takes new certificates.

What it promises: no write fails because the server restarts, gets a new certificate, or has too much to do.

- A POST is never tried again by the API server once it is on a connection. So after a signal to stop, open
  connections are still answered, each with `connection: close`, until they are gone or the time to drain is over;
  a TLS handshake under way counts as a connection. An idle connection is kept longer than its client keeps it.
- A new pair is loaded into an SSL context of its own. Only if that works do new connections get it, so a pair that is
  half written harms nothing.
- gunicorn forks: nothing here may start a thread or keep a file open before the application is made in the worker.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from uvicorn import Config as UvicornConfig
from uvicorn import Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn_worker import UvicornWorker

from webhook import app
from webhook.asgi import Application, Entry, Message, Receive, Send, send_reply
from webhook.config import Config, ServerSettings
from webhook.errors import CertificateError, DriftgateError
from webhook.logs import Reported, log, never_wait, report_libraries, told
from webhook.review import Reviewer

KEEP_ALIVE = 120  # seconds; the API server closes idle connections after 90, and must be the one to do it
LAST_ANSWERS = 3.0  # seconds for the answers under way when the time to drain is over
FAREWELL = 0.5  # seconds for clients to take leave; an idle one may not even look
LOOK = 1.0  # seconds between two looks at the certificate's files
HEARTBEAT = 30  # seconds after which gunicorn replaces a worker whose event loop hangs
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 -- gunicorn's heartbeat file: in memory, unlinked as soon as it is open


def serve_webhook(config: Config, make_reviewer: Callable[[Config], Reviewer]) -> None:
    """Answer reviews until a signal says to stop; the reviewer is made in the worker. Then exits the process.

    Raises CertificateError if there is no good pair to begin with.
    """
    serve(config, lambda config: Entry(make_reviewer(config), config.server))


def serve(config: Config, make_app: Callable[[Config], Application]) -> None:
    """Serve any ASGI application in the same way. Its `close()`, if it has one, is called at the end."""
    load_pair(config.server.certificates)
    report_libraries()
    never_wait()
    _Gunicorn(config, make_app).run()


def load_pair(folder: Path) -> ssl.SSLContext:
    """Return a context that serves `tls.crt` and `tls.key` of `folder`. Raises CertificateError."""
    certificate, key = folder / "tls.crt", folder / "tls.key"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password="")  # without one OpenSSL would ask the terminal
    except OSError as error:
        why = (getattr(error, "reason", None) or error.strerror or "no PEM").replace("_", " ").lower()
        raise CertificateError(
            f"{certificate} and {key} are no pair that can be served: {why}; `driftgate certs` makes one"
        ) from None
    return context


class Certificates:
    """The newest good pair of a folder. Connections begin with `context`, and are handed the newest pair."""

    def __init__(self, folder: Path) -> None:
        """Load the pair. Raises CertificateError."""
        self._folder = folder
        self._loaded = self._refused = self._state()
        self._newest = self.context = load_pair(folder)
        self.context.sni_callback = self._hand_over  # is called in every handshake, also where no name is sent

    async def watch(self) -> None:
        """Look at the files again and again: a Secret's files in a pod are swapped by symlink."""
        while True:
            await asyncio.sleep(LOOK)
            self.look()

    def look(self) -> None:
        """Take a new pair if there is one, and if it is good."""
        state = self._state()
        if state == self._loaded:
            return
        try:
            self._newest = load_pair(self._folder)
        except CertificateError as error:
            if state != self._refused:
                log("cert.refused", reason=str(error))
            self._refused = state
        else:
            self._loaded = state
            log("cert.reloaded", folder=self._folder)

    def _hand_over(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._newest

    def _state(self) -> tuple[tuple[int, ...] | None, ...]:
        return tuple(_identity(self._folder / name) for name in ("tls.crt", "tls.key"))


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


class Connection(HttpToolsProtocol):
    """One connection: told to come back where there are too many, and closed where it asks nothing for long."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Begin. uvicorn's own limit is not used: it turns all connections away, and without a Retry-After."""
        super().connection_made(transport)
        if len(self.connections) > (self.limit_concurrency or sys.maxsize):
            self.app = turn_away
        self.limit_concurrency = None
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        """Read on. uvicorn minds the idle time only after an answer: a request may begin and never end."""
        super().data_received(data)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and leave no timer behind."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def answer_last(self) -> None:
        """Close once the request under way is answered."""
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def _expect_request(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )


async def turn_away(_scope: Message, _receive: Receive, send: Send) -> None:
    """Say that there are too many connections."""
    await send_reply(app.sentence(503, "there are too many connections", app.RETRY_AFTER, app.CLOSE), send)


class DrainingServer(Server):
    """A uvicorn server that answers what still comes on open connections before it leaves."""

    def __init__(self, config: UvicornConfig, settings: ServerSettings) -> None:
        super().__init__(config)
        self._drain = settings.drain.total_seconds()
        self._parent = os.getppid()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; then keep the collector off all that is there to stay."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()
        host, port = (sockets or [])[0].getsockname()[:2]
        log("server.started", host=host, port=port, pid=os.getpid())

    async def on_tick(self, counter: int) -> bool:
        """Tell whether to stop: also where gunicorn's master is gone, for nobody would replace or stop this worker."""
        return await super().on_tick(counter) or os.getppid() != self._parent

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listeners and wait until all connections are gone, but no longer than the time to drain.

        Nothing is waited for after `leave_at_once`.
        """
        state = self.server_state
        log("server.draining", connections=len(state.connections), pid=os.getpid())
        gone = [asyncio.create_task(server.wait_closed()) for server in self.servers]
        await asyncio.sleep(0)  # uvloop counts connections and handshakes only for who waits before the listener closes
        for listener in (*self.servers, *(sockets or ())):
            listener.close()
        state.default_headers = [*state.default_headers, (b"connection", b"close")]
        for connection in state.connections:
            if isinstance(connection, Connection):
                connection.answer_last()
        await self._until(lambda: all(task.done() for task in gone), self._drain)
        for connection in list(state.connections):
            connection.shutdown()
        await self._until(lambda: not state.tasks, LAST_ANSWERS)
        await self._until(lambda: not state.connections, FAREWELL)
        self._captured_signals.clear()  # uvicorn would raise them again, and end the process here and now
        log("server.stopped", pid=os.getpid())

    def leave_at_once(self) -> None:
        """Stop without draining. gunicorn sends SIGQUIT to say so, after a Ctrl-C for example."""
        self.should_exit = self.force_exit = True

    async def _until(self, done: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not (done() or self.force_exit or time.monotonic() > end):  # noqa: ASYNC110 -- uvicorn tells of neither
            await asyncio.sleep(0.02)


class Worker(UvicornWorker):  # type: ignore[misc]  # uvicorn-worker ships no types
    """The worker process."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        "loop": "uvloop",
        "http": Connection,
        "ws": "none",
        "lifespan": "off",
        "interface": "asgi3",
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "timeout_keep_alive": KEEP_ALIVE,
    }

    async def _serve(self) -> None:
        settings: ServerSettings = self.app.driftgate.server
        try:
            certificates = Certificates(settings.certificates)
        except CertificateError as error:
            log("cert.refused", reason=str(error))
            await asyncio.sleep(LOOK)
            sys.exit(1)  # gunicorn starts another worker, and looks again
        self.config.app = self.wsgi
        self.config.limit_concurrency = settings.max_connections
        self.config.load()
        self.config.ssl = certificates.context
        server = DrainingServer(self.config, settings)
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, server.leave_at_once)
        watching = asyncio.create_task(certificates.watch())
        await server.serve(sockets=self.sockets)
        watching.cancel()
        if close := getattr(self.wsgi, "close", None):
            close()


class _GunicornLog(Logger):  # type: ignore[misc]  # gunicorn ships no types
    """What gunicorn and uvicorn have to say, as lines of ours."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers = [Reported()]
        self.error_log.setLevel(logging.WARNING)


class _Gunicorn(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    def __init__(self, config: Config, make_app: Callable[[Config], Application]) -> None:
        self.driftgate = config
        self._make_app = make_app
        super().__init__()

    def load_config(self) -> None:
        settings = self.driftgate.server
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        for name, value in {
            "bind": f"{host}:{settings.port}",
            "workers": settings.workers,
            "worker_class": Worker,
            "worker_tmp_dir": str(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None,
            "timeout": HEARTBEAT,
            "graceful_timeout": int(settings.drain.total_seconds() + LAST_ANSWERS) + 7,
            "control_socket_disable": True,
            "logger_class": _GunicornLog,
            "proc_name": "driftgate",
        }.items():
            self.cfg.set(name, value)

    def load(self) -> Application:
        """Make the application; called in the worker."""
        try:
            return self._make_app(self.driftgate)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the log gets a line and no stack trace
            reason = {"reason": str(error)} if isinstance(error, DriftgateError) else told(error)
            log("server.failed", **reason)
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
