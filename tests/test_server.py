"""The real server: processes on loopback, TLS, signals, certificates, load."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from uvicorn import Config as UvicornConfig
from uvicorn.server import ServerState

from tests.fakes_server import review
from webhook.app import MAX_BODY
from webhook.cli import main
from webhook.errors import CertificateError
from webhook.server import KEEP_ALIVE, Connection, load_pair, turn_away

FAKES = Path(__file__).with_name("fakes_server.py")
HEADERS = {"Content-Type": "application/json"}
HEAD = b"POST /validate HTTP/1.1\r\nHost: webhook\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n"
STALLED = 200


class Authority:
    """A CA, and pairs that it signed in a folder that is swapped as Kubernetes swaps a Secret's."""

    def __init__(self, folder):
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign("tests", self.key.public_key(), ca=True)
        self.generation = 0
        for name in ("tls.crt", "tls.key"):
            (folder / name).symlink_to(Path("..data") / name)
        self.swap()

    def swap(self):
        """Put a new pair in place, all at once. Returns its serial number."""
        self.generation += 1
        behind = self.folder / f"..{self.generation}"
        behind.mkdir()
        certificate, key = self.pair()
        (behind / "tls.crt").write_bytes(certificate)
        (behind / "tls.key").write_bytes(key)
        link = self.folder / "..new"
        link.symlink_to(behind.name)
        link.rename(self.folder / "..data")
        return x509.load_pem_x509_certificate(certificate).serial_number

    def pair(self):
        """Return a certificate and a key, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return self._sign("webhook", key.public_key(), ca=False).public_bytes(serialization.Encoding.PEM), pem

    def context(self):
        """Return what a client needs to trust the pairs."""
        return ssl.create_default_context(
            cadata=self.certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")
        )

    def _sign(self, name, key, *, ca):
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")]))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .sign(self.key, hashes.SHA256())
        )


class Served:
    """A server in processes of its own. `log` holds the lines that it wrote so far."""

    def __init__(self, folder, authority, **settings):
        self.authority = authority
        self.log = []
        config = folder / f"config-{time.monotonic_ns()}.yaml"
        server = {"host": "127.0.0.1", "port": 0, "certificates": str(authority.folder), "drain": "4s"}
        config.write_text(yaml.safe_dump({"server": server | settings}))
        self.errors = config.with_suffix(".err")
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(FAKES), str(config)],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | {"PYTHONPATH": str(FAKES.parents[1])},
            )
        assert self.process.stdout
        self._output = self.process.stdout
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.port = self.seen("server.started")["port"]

    def _read(self):
        for line in self._output:
            self.log.append(json.loads(line))

    def events(self, name):
        return [line for line in list(self.log) if line["event"] == name]

    def seen(self, name, times=1):
        """Wait until an event was logged so many times; return the last line."""
        wait_until(lambda: len(self.events(name)) >= times or self.process.poll() is not None)
        assert len(self.events(name)) >= times, (name, self.log, self.errors.read_text())
        return self.events(name)[-1]

    def connect(self, **how):
        return http.client.HTTPSConnection("127.0.0.1", self.port, context=self.authority.context(), timeout=8, **how)

    def ask(self, path="/validate", body=None, method="POST", headers=HEADERS):
        """Ask over a connection of its own. Returns status and body."""
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, review() if body is None else body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def open_tls(self):
        return self.authority.context().wrap_socket(
            socket.create_connection(("127.0.0.1", self.port), timeout=8), server_hostname="127.0.0.1"
        )

    def serial(self):
        """Return the serial number of the certificate that a new connection is served."""
        with self.open_tls() as connection:
            return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True)).serial_number

    def stop(self, how=signal.SIGTERM):
        """Stop it. Returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            code = self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join(10)
            assert not self._reader.is_alive(), "somebody still holds its standard output"
            self._output.close()
        assert self.errors.read_text() == ""
        return code


class Load:
    """Clients that send reviews over kept-alive connections, and connect anew where they are told to close.

    As the API server they don't send a review again once it is on a connection; a port that refuses a connection they
    may leave for the next.
    """

    def __init__(self, *servers, clients=6):
        self.servers = list(servers)
        self.answered = 0
        self.connected = 0
        self.failures = []
        self._context = servers[0].authority.context()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        self.goes_on()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self, answers=300):
        """Wait for so many more answers."""
        until = self.answered + answers
        wait_until(lambda: self.answered >= until or self.failures)
        assert self.failures == []

    def _send(self, number):
        connection = None
        body = review(f"client-{number}", size=10_000)
        try:
            while not self._stopped.is_set():
                if connection is None or connection.sock is None:
                    connection = self._connect()
                    self.connected += 1
                connection.request("POST", "/validate?timeout=5s", body, HEADERS)
                answer = connection.getresponse()
                if (answer.status, b"denied at validate" in answer.read()) != (200, True):
                    self.failures.append(answer.status)
                self.answered += 1
        except Exception as error:  # noqa: BLE001 -- whatever it is, it would have failed somebody's write
            self.failures.append(repr(error))
        finally:
            if connection:
                connection.close()

    def _connect(self):
        for attempt in range(100):
            server = self.servers[attempt % len(self.servers)]
            connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=self._context, timeout=8)
            try:
                connection.connect()
            except ConnectionRefusedError:
                time.sleep(0.02)
            else:
                return connection
        raise ConnectionRefusedError


def wait_until(true, seconds=10.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def authority(tmp_path):
    folder = tmp_path / "certificates"
    folder.mkdir()
    return Authority(folder)


@pytest.fixture
def start(tmp_path, authority):
    """Start servers, which end with the test."""
    with contextlib.ExitStack() as running:

        def begin(**settings):
            server = Served(tmp_path, authority, **settings)
            running.callback(lambda: server.process.poll() is None and server.stop())
            return server

        yield begin


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One server for all tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "certificates").mkdir()
    server = Served(folder, Authority(folder / "certificates"), body_timeout="1s")
    yield server
    server.stop()


def test_a_hangup_under_load_fails_no_write(start):
    """HUP replaces the worker: the old one answers what it has and says `connection: close`."""
    server = start()
    with Load(server) as load:
        for times in (1, 2):
            server.process.send_signal(signal.SIGHUP)
            server.seen("server.stopped", times)
            server.seen("server.started", times + 1)
            load.goes_on()

    assert load.failures == []
    assert len({line["pid"] for line in server.events("server.started")}) == 3


def test_a_rolling_restart_under_load_fails_no_write(start):
    """TERM: whoever is connected is answered; new connections are refused and find the other instance."""
    first, second = start(), start()
    with Load(first, second) as load:
        assert first.stop() == 0
        load.goes_on()
        load.servers[0] = start(port=first.port)
        assert second.stop() == 0
        load.goes_on()

    assert load.failures == []
    assert load.connected >= 12


def test_a_new_certificate_under_load_fails_no_write(start, authority):
    """No connection is dropped, and new connections get the new certificate."""
    server = start()
    with Load(server, clients=4) as load:
        for times in (1, 2):
            serial = authority.swap()
            server.seen("cert.reloaded", times)
            load.goes_on()
            assert server.serial() == serial

    assert load.failures == []
    assert load.connected == 4


def test_a_pair_that_is_half_written_changes_nothing(start, authority):
    """The last good pair is served until both files fit, and the log says so once."""
    server = start()
    before = server.serial()
    certificate, key = authority.pair()

    (authority.folder / "tls.crt").write_bytes(certificate[:100])
    server.seen("cert.refused")
    (authority.folder / "tls.crt").write_bytes(certificate)
    reason = server.seen("cert.refused", 2)["reason"]
    assert server.serial() == before
    (authority.folder / "tls.key").write_bytes(key)
    server.seen("cert.reloaded")

    assert server.serial() == x509.load_pem_x509_certificate(certificate).serial_number
    assert f"{authority.folder}/tls.key" in reason
    assert "key values mismatch" in reason
    assert len(server.events("cert.refused")) == 2


@pytest.mark.parametrize("missing", ["tls.crt", "tls.key", None])
def test_without_a_good_pair_it_does_not_start(tmp_path, authority, missing, monkeypatch, capfd):
    """The command names the files and what makes them, and ends with 1."""
    if missing:
        (authority.folder / missing).unlink()
    else:
        (authority.folder / "tls.key").write_bytes(authority.pair()[1])
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"server": {"certificates": str(authority.folder)}}))

    monkeypatch.setattr(sys, "argv", ["driftgate", "webhook", "--config", str(config)])
    with pytest.raises(SystemExit) as ended:
        main()

    output, errors = capfd.readouterr()
    assert (ended.value.code, output) == (1, "")
    assert errors.startswith(f"driftgate: {authority.folder}/tls.crt and {authority.folder}/tls.key are no pair")
    assert "`driftgate certs`" in errors
    assert errors.count("\n") == 1


def test_a_key_with_a_passphrase_is_refused(authority):
    """And nobody is asked for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"passphrase"),
    )
    (authority.folder / "tls.key").write_bytes(pem)

    with pytest.raises(CertificateError, match="no pair"):
        load_pair(authority.folder)


def test_tls_is_1_2_or_newer(served):
    """Older versions are refused, newer ones are not."""
    context = served.authority.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    raw = socket.create_connection(("127.0.0.1", served.port))
    with context.wrap_socket(raw, server_hostname="127.0.0.1") as connection:
        assert connection.version() == "TLSv1.2"

    assert load_pair(served.authority.folder).minimum_version == ssl.TLSVersion.TLSv1_2


def test_what_is_under_way_when_it_stops_is_answered(start):
    """A review that is being judged, an idle connection and a handshake: all are served, and told to close."""
    server = start()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    late = server.authority.context().wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    assert not handshaken(late)
    hello = outgoing.read()
    with contextlib.ExitStack() as open_:
        idle, busy = (open_.enter_context(contextlib.closing(server.connect())) for _ in range(2))
        raw = open_.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        idle.connect()
        busy.request("POST", "/validate", review("slow-second"), HEADERS)
        raw.sendall(hello[:20])
        time.sleep(0.2)
        server.process.terminate()
        server.seen("server.draining")

        idle.request("POST", "/validate", review(), HEADERS)
        for connection in (idle, busy):
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("connection")) == (200, "close")
            answer.read()
        time.sleep(0.5)
        raw.sendall(hello[20:])
        assert b"connection: close" in finish(late, raw, incoming, outgoing)

    assert server.stop() == 0
    assert server.log[-1]["event"] == "server.stopped"


def handshaken(tls):
    """Go on with a handshake as far as it can; tell whether it is over."""
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def received(raw):
    piece = raw.recv(65536)
    assert piece, "the connection was closed"
    return piece


def finish(tls, raw, incoming, outgoing):
    """Finish a handshake, send a review, and return the answer's first bytes."""
    raw.settimeout(8)
    while not handshaken(tls):
        incoming.write(received(raw))
    body = review()
    tls.write(HEAD.replace(b"999", str(len(body)).encode()) + body)
    raw.sendall(outgoing.read())
    while True:
        try:
            return tls.read(65536)
        except ssl.SSLWantReadError:
            incoming.write(received(raw))


def test_it_leaves_when_the_time_to_drain_is_over(start):
    """A connection that nobody uses or closes delays the end only so long."""
    server = start(drain="1s")
    with contextlib.closing(server.connect()) as idle:
        idle.connect()
        started = time.monotonic()

        assert server.stop() == 0
        assert 1 <= time.monotonic() - started < 8
    assert server.log[-1]["event"] == "server.stopped"


def test_ctrl_c_does_not_drain(start):
    """SIGINT comes from somebody at a terminal, who does not want to wait."""
    server = start(drain="30s")
    with contextlib.closing(server.connect()) as idle:
        idle.connect()
        started = time.monotonic()

        assert server.stop(signal.SIGINT) == 0
        assert time.monotonic() - started < 10


def test_no_worker_outlives_its_master(start):
    """A worker that nobody could stop any more stops by itself."""
    server = start()

    server.stop(signal.SIGKILL)

    assert server.log[-1]["event"] == "server.stopped"


def test_half_handshakes_hold_nobody_up(served):
    """Two hundred clients that begin TLS and never go on."""
    outgoing = ssl.MemoryBIO()
    assert not handshaken(served.authority.context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1"))
    begun = outgoing.read()[:100]
    with contextlib.ExitStack() as crowd:
        for _ in range(STALLED):
            crowd.enter_context(socket.create_connection(("127.0.0.1", served.port))).sendall(begun)

        assert answers_quickly(served)


def test_stalled_bodies_hold_nobody_up(served):
    """Two hundred clients that begin a body and never go on; each is told in the end."""
    with contextlib.ExitStack() as crowd:
        connections = [crowd.enter_context(served.open_tls()) for _ in range(STALLED)]
        for connection in connections:
            connection.sendall(HEAD + b"{")

        assert answers_quickly(served)
        answers = [connection.recv(4096) for connection in connections]

    assert {answer.split(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 408 Request Timeout"}


def answers_quickly(served):
    started = time.monotonic()
    for _ in range(5):
        assert served.ask()[0] == 200
    return time.monotonic() - started < 2


def test_too_many_connections_are_asked_to_come_again(start):
    """503 with Retry-After for the new one; those that are there are served."""
    server = start(max_connections=3)
    with contextlib.ExitStack() as crowd:
        connections = [crowd.enter_context(contextlib.closing(server.connect())) for _ in range(4)]
        answers = []
        for connection in connections:
            connection.request("POST", "/validate", review(), HEADERS)
            answers.append(connection.getresponse())
            answers[-1].read()
        connections[0].request("POST", "/validate", review(), HEADERS)

        assert [answer.status for answer in answers] == [200, 200, 200, 503]
        assert (answers[3].getheader("retry-after"), answers[3].getheader("connection")) == ("1", "close")
        assert connections[0].getresponse().status == 200
    wait_until(lambda: server.ask()[0] == 200)


def test_an_idle_connection_is_kept(served):
    """Longer than the API server keeps it (90 s), and than gunicorn would by default (2 s)."""
    assert KEEP_ALIVE > 90
    with contextlib.closing(served.connect()) as connection:
        connection.request("POST", "/validate", review(), HEADERS)
        connection.getresponse().read()
        kept = connection.sock
        time.sleep(2.5)
        connection.request("POST", "/validate", review(), HEADERS)

        assert connection.getresponse().status == 200
        assert connection.sock is kept


@pytest.mark.parametrize("begun", [b"", b"POST /validate HT"], ids=["nothing", "half a head"])
def test_a_connection_that_asks_nothing_is_closed(begun):
    """uvicorn would wait for ever for a first request."""
    config = UvicornConfig(turn_away, interface="asgi3", ws="none", log_config=None)
    config.load()
    setattr(config, "timeout_keep_alive", 0.2)  # noqa: B010 -- uvicorn's type allows whole seconds only

    async def listen():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(config, ServerState(), {}), "127.0.0.1")
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(begun)
            answer = await asyncio.wait_for(reader.read(), 5)
            writer.close()
            await writer.wait_closed()
            return answer

    assert asyncio.run(listen()) == b""


def chunked(size):
    piece = b"x" * 65536
    yield from (piece for _ in range(size // len(piece)))


def test_bodies_of_any_size_get_their_answer(served):
    """Up to 7 MiB it is a review; beyond it the caller reads why, chunked or not, and is not cut off."""
    assert served.ask(body=review(size=5 * 1024 * 1024))[0] == 200
    assert served.ask(body=b"x" * (MAX_BODY + 1))[0] == 413
    assert served.ask(body=chunked(MAX_BODY))[0] == 400
    assert served.ask(body=chunked(2 * MAX_BODY))[0] == 413


def test_the_rest_is_flasks(served):
    """Health, readiness, and sentences for what is wrong: over the same port."""
    assert served.ask("/healthz", method="GET") == (200, b"ok\n")
    assert served.ask("/readyz", method="GET") == (200, b"ok\n")
    assert served.ask("/nowhere", method="GET")[0] == 404
    assert served.ask("/mutate", method="GET")[0] == 405
    assert served.ask(headers={})[0] == 415
    assert served.ask(body=b"{")[0] == 400
    assert served.ask(body=b"[" * 100_000)[0] == 400
    assert served.ask(body=review("raises"))[0] == 500


def test_nonsense_is_answered_without_a_stack_trace(served):
    """Neither on the connection nor in the log."""
    with served.open_tls() as connection:
        connection.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        answer = connection.recv(4096)
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: webhook\r\n\r\n")
        connection.recv(4096)

    assert answer.startswith(b"HTTP/1.1 400 Bad Request")
    assert served.ask()[0] == 200
    assert "Traceback" not in answer.decode() + str(served.log)
