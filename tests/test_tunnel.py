"""apt_via=workstation: a device without internet, whose apt goes through the SSH connection to this computer's."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from acoupi_fleet import tunnel
from acoupi_fleet.errors import HostError
from acoupi_fleet.inventory import Connection, Host, Origin
from acoupi_fleet.remote import HostKeys, Session, converse
from acoupi_fleet.remote import session as conversation
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support import SshServer

PACKAGE = bytes(range(256)) * 1024
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


class Archive(BaseHTTPRequestHandler):
    """A server as apt meets them, and, asked for a whole address or to CONNECT, a proxy that leads everything here."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append((self.command, self.path, dict(self.headers)))  # type: ignore[attr-defined]
        match self.path.partition("?")[0].rpartition("/")[2]:
            case "redis.deb":
                self.answer(200, PACKAGE, {"Content-Length": str(len(PACKAGE)), "Keep-Alive": "timeout=5"})
            case "unsized":
                pieces = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (b"one,", b"two"))
                self.answer(200, pieces + b"0\r\n\r\n", {"Transfer-Encoding": "chunked"})
            case "unchanged":
                self.answer(304, b"", {"ETag": "x"})
            case "cut":
                self.answer(200, PACKAGE[:1000], {"Content-Length": str(len(PACKAGE))})
                self.close_connection = True
            case _:
                self.answer(404, b"gone", {"Content-Length": "4"})

    do_HEAD = do_GET  # noqa: N815 - the base class's name

    def do_CONNECT(self) -> None:
        self.server.seen.append((self.command, self.path, dict(self.headers)))  # type: ignore[attr-defined]
        self.send_response_only(200)
        self.end_headers()
        self.close_connection = False  # whatever the version: what follows is for the server

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


class Server(ThreadingHTTPServer):
    """An archive on loopback that remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        super().__init__(("127.0.0.1", 0), Archive)

    def reach(self, host: str, port: int) -> socket.socket:
        """Every host of the web is this one."""
        self.asked = (host, port)
        return socket.create_connection(("127.0.0.1", self.server_port), timeout=60)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tester's own proxies are not this test's."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def archive() -> Iterator[Server]:
    """An archive, running."""
    with Server() as server:
        thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.02))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def apt(reach: Callable[[str, int], socket.socket] = tunnel.reach) -> Iterator[HTTPConnection]:
    """The client's end of a connection through the proxy."""
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    thread = threading.Thread(target=functools.partial(tunnel.serve, theirs, reach=reach))
    thread.start()
    connection = HTTPConnection("proxy")
    connection.sock = ours
    try:
        yield connection
    finally:
        ours.close()
        thread.join(60)
        assert not thread.is_alive(), "the proxy ends with its connection"


def ask(connection: HTTPConnection, method: str, target: str, **headers: str) -> tuple[HTTPResponse, bytes]:
    connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer, answer.read()


def test_one_connection_fetches_one_thing_after_the_other(archive: Server) -> None:
    with apt(archive.reach) as connection:
        answer, body = ask(connection, "GET", "http://deb.test:80/debian/redis.deb?x=1", Host="deb.test", X="y")
        assert (answer.status, body == PACKAGE) == (200, True)
        answer, body = ask(connection, "GET", "http://deb.test/debian/redis.deb", Proxy_Connection="keep-alive")
        assert (answer.status, body == PACKAGE, answer.headers["Keep-Alive"]) == (200, True, None)
        answer, body = ask(connection, "GET", "http://deb.test/debian/unsized")
        assert (answer.status, body, answer.chunked) == (200, b"one,two", True)
        answer, body = ask(connection, "HEAD", "http://deb.test/debian/redis.deb")
        assert (answer.headers["Content-Length"], body) == (str(len(PACKAGE)), b"")
        answer, body = ask(connection, "GET", "http://deb.test/debian/unchanged", If_Modified_Since="today")
        assert (answer.status, answer.headers["ETag"], body) == (304, "x", b"")
        answer, body = ask(connection, "GET", "http://deb.test/none")
        assert (answer.status, body) == (404, b"gone")
    assert archive.asked == ("deb.test", 80)
    first, second = archive.seen[:2]
    assert first[:2] == ("GET", "/debian/redis.deb?x=1")
    assert (first[2]["Host"], first[2]["X"]) == ("deb.test:80", "y")
    assert "Proxy-Connection" not in second[2]


def test_requests_that_come_at_once_are_answered_in_their_order(archive: Server) -> None:
    with apt(archive.reach) as connection:
        connection.sock.sendall(
            b"".join(b"HEAD http://d.test/%d HTTP/1.1\r\nHost: d.test\r\n\r\n" % n for n in range(9))
        )
        connection.sock.shutdown(socket.SHUT_WR)
        said = b"".join(iter(lambda: connection.sock.recv(1 << 16), b""))
    assert said.count(b"HTTP/1.1 404") == 9
    assert [path for _, path, _ in archive.seen] == [f"/{number}" for number in range(9)]


def test_a_file_that_breaks_off_breaks_off_for_apt_too(archive: Server) -> None:
    with apt(archive.reach) as connection:
        connection.sock.sendall(b"GET http://deb.test/cut HTTP/1.1\r\nHost: deb.test\r\n\r\n")
        said = b"".join(iter(lambda: connection.sock.recv(1 << 16), b""))
    head, _, body = said.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(PACKAGE)}".encode() in head
    assert body == PACKAGE[:1000]


def test_https_is_led_through_unread(archive: Server) -> None:
    with apt(archive.reach) as connection:
        connection.sock.sendall(
            b"CONNECT deb.test:443 HTTP/1.1\r\nHost: deb.test:443\r\n\r\nGET /redis.deb HTTP/1.1\r\n"
        )
        connection.sock.sendall(b"Host: inside\r\nConnection: close\r\n\r\n")
        said = b"".join(iter(lambda: connection.sock.recv(1 << 16), b""))
    assert archive.asked == ("deb.test", 443)
    assert said.startswith(b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200")
    assert said.endswith(PACKAGE)
    assert [(command, path) for command, path, _ in archive.seen] == [("GET", "/redis.deb")]


@pytest.mark.parametrize(
    ("method", "target", "status", "why"),
    [
        ("GET", "http://192.0.2.1:22/", 403, "port 22 is not lent, only 80 and 443"),
        ("GET", "http://192.0.2.1:6379/", 403, "port 6379 is not lent"),
        ("CONNECT", "192.0.2.1:22", 403, "port 22 is not lent"),
        ("GET", "http://127.0.0.1/", 403, "127.0.0.1 is the workstation itself"),
        ("GET", "http://localhost/", 403, "localhost is the workstation itself"),
        ("GET", "http://127.1/", 403, "127.0.0.1 is the workstation itself"),
        ("GET", "http://0.0.0.0/", 403, "0.0.0.0 is the workstation itself"),
        ("GET", "http://[::1]/", 403, "::1 is the workstation itself"),
        ("GET", "http://[::ffff:127.0.0.1]/", 403, "is the workstation itself"),
        ("CONNECT", "169.254.169.254:80", 403, "169.254.169.254 is the workstation itself or its own cable"),
        ("CONNECT", "[::1]:443", 403, "::1 is the workstation itself"),
        ("GET", "http://no-such-archive.invalid/", 502, "no-such-archive.invalid does not resolve on the workstation"),
        ("GET", "/debian/redis.deb", 400, "this is a proxy for apt"),
        ("GET", "ftp://192.0.2.1:80/", 400, "this is a proxy for apt"),
        ("GET", "http://192.0.2.1:99999/", 400, "this is a proxy for apt"),
        ("CONNECT", ":443", 400, "this is a proxy for apt"),
    ],
)
def test_what_is_not_lent_is_refused_with_the_reason_in_the_line_that_apt_shows(
    method: str, target: str, status: int, why: str
) -> None:
    with apt() as connection:
        for _ in range(2):  # and the connection goes on
            answer, body = ask(connection, method, target, Host="x")
            assert (answer.status, body) == (status, b"")
            assert why in answer.reason


@pytest.mark.parametrize("body", [{"Content_Length": "9"}, {"Transfer_Encoding": "chunked"}])
def test_a_request_with_a_body_is_no_request_of_apt(archive: Server, body: dict[str, str]) -> None:
    with apt(archive.reach) as connection:
        answer, _ = ask(connection, "GET", "http://deb.test/redis.deb", **body)
        assert (answer.status, connection.sock.recv(1)) == (400, b"")
    assert archive.seen == []


def test_a_name_that_leads_to_this_computer_is_refused_like_its_address(tmp_path: Path) -> None:
    name = socket.gethostname()
    place: set[str | int] = set()
    with contextlib.suppress(socket.gaierror):  # a machine need not know its own name
        place = {found[4][0] for found in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)}
    if not any(str(address).startswith("127.") for address in place):
        pytest.skip(f"this computer's name {name} does not lead to its loopback address")
    with pytest.raises(tunnel.RefusedError, match="is the workstation itself"):
        tunnel.reach(name, 80)


@pytest.mark.parametrize("named", ["http://nina:open%20sesame@127.0.0.1:{}", "127.0.0.1:{}"], ids=["login", "short"])
def test_where_the_environment_names_a_proxy_everything_goes_through_it(
    archive: Server, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, named.format(archive.server_port))
    with apt() as connection:  # only the next proxy can resolve these names
        answer, body = ask(connection, "GET", "http://deb.invalid/redis.deb", Host="deb.invalid")
        assert (answer.status, body == PACKAGE) == (200, True)
    with apt() as connection:
        connection.sock.sendall(
            b"CONNECT deb.invalid:443 HTTP/1.1\r\n\r\nGET /redis.deb HTTP/1.1\r\nConnection: close\r\n\r\n"
        )
        assert b"".join(iter(lambda: connection.sock.recv(1 << 16), b"")).endswith(PACKAGE)
    asked = [(command, path) for command, path, _ in archive.seen]
    assert asked == [("GET", "http://deb.invalid/redis.deb"), ("CONNECT", "deb.invalid:443"), ("GET", "/redis.deb")]
    login = "Basic bmluYTpvcGVuIHNlc2FtZQ==" if "nina" in named else None
    assert [headers.get("Proxy-Authorization") for *_, headers in archive.seen] == [login, login, None]


def test_the_next_proxy_is_no_way_around_what_is_not_lent(archive: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{archive.server_port}")
    monkeypatch.setenv("no_proxy", "direct.invalid")
    with apt() as connection:
        for target, status in (
            ("http://deb.invalid:8080/", 403),
            ("http://127.0.0.1/", 403),
            ("http://direct.invalid/", 502),
        ):
            assert ask(connection, "GET", target)[0].status == status
        monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
        assert ask(connection, "GET", "http://deb.invalid/")[0].reason.startswith("http_proxy on the workstation is no")
    assert archive.seen == []


# --- through SSH ---


@contextlib.contextmanager
def talking(sshd: SshServer, folder: Path) -> Iterator[Session]:
    """A conversation with the agent on the server of this test."""
    to = Connection("127.0.0.1", sshd.port, sshd.user, sshd.identity, sshd.host_key, connect_timeout=60)
    host = Host("owl", to, {}, (), Origin(Path("sensors.ini"), 1))
    with converse(host, "user", keys=HostKeys([folder / "trusted"])) as session:
        yield session


def test_the_port_on_the_device_leads_here_while_it_is_lent_and_no_longer(
    sshd: SshServer, archive: Server, tmp_path: Path
) -> None:
    serve = functools.partial(tunnel.serve, reach=archive.reach)
    with talking(sshd, tmp_path) as session, contextlib.ExitStack() as open_ones:
        with session.lend(serve) as port:
            # This computer is the device, too.
            device = open_ones.enter_context(contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=60)))
            answer, body = ask(device, "GET", "http://deb.test/redis.deb", Host="deb.test")
            assert (answer.status, body == PACKAGE) == (200, True)
            others = [open_ones.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(40)]
            # There is an end to how many are served at once.
            refused = wait_until(lambda: [other for other in others if closed(other)], 60, "the last ones to be closed")
            assert len(refused) < len(others)
        assert device.sock.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=60)


def test_whoever_comes_when_it_ends_does_not_end_the_conversation(sshd: SshServer, tmp_path: Path) -> None:
    words = {"scope": "user", "argv": ["echo", "on"], "as_service": False, "timeout": 60}

    def come(port: int, came: threading.Event) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as guests:
            for _ in range(200):
                guests.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
                came.set()

    with talking(sshd, tmp_path) as session:
        for _ in range(10):
            came = threading.Event()
            with session.lend(tunnel.serve) as port:
                guest = threading.Thread(target=come, args=(port, came))
                guest.start()
                assert came.wait(60)
            guest.join()
            assert session.ask("run", words)["out"] == "on\n"


def closed(guest: socket.socket) -> bool:
    guest.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        return guest.recv(1) == b""
    return False


def test_a_server_that_allows_no_tunnel_is_told_in_one_line(sshd: SshServer, tmp_path: Path) -> None:
    trusted = sshd.home.with_name("authorized_keys")
    trusted.write_text(f"restrict {trusted.read_text()}")
    with talking(sshd, tmp_path) as session:
        with pytest.raises(HostError, match=r"allows no tunnel back, .*; write `AllowTcpForwarding yes` in") as refused:
            session.lend(tunnel.serve).__enter__()
        assert "\n" not in str(refused.value)


def with_verb(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Give the agent one more verb, `try`."""
    text = f"from acoupi_fleet.device.layout import Refusal\n{code}\nagent.VERBS['try'] = verb\nagent.main()\n"
    monkeypatch.setattr(conversation, "_LOADER", conversation._LOADER.replace("agent.main()\n", text))
    monkeypatch.setattr(conversation, "agent_source", conversation.agent_source.__wrapped__)


def test_a_device_is_heard_while_it_does_not_yet_take_what_is_sent(
    sshd: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"""
def verb(call):
    import pathlib, time
    call.say("go")
    call.say("progress", text="apt")
    while not pathlib.Path({str(tmp_path / "heard")!r}).exists():
        time.sleep(0.02)
    return {{"taken": len(call.take({1 << 25}))}}
"""
    with_verb(monkeypatch, code)
    with talking(sshd, tmp_path) as session:
        session._channel.settimeout(20)
        heard = tmp_path / "heard"
        said = session.ask("try", {}, body=lambda: iter([bytes(1 << 25)]), observe=lambda _: heard.touch())
        assert said == {"taken": 1 << 25}


def test_a_device_that_refuses_in_the_middle_is_heard_and_the_rest_is_forgotten(
    sshd: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_verb(
        monkeypatch, "def verb(call):\n    call.say('go')\n    call.take(1 << 20)\n    raise Refusal('full; free some')"
    )
    for _ in range(3):
        with pytest.raises(HostError, match="full; free some"), talking(sshd, tmp_path) as session:
            session.ask("try", {}, body=lambda: iter([bytes(1 << 18)] * 400))
    wait_until(lambda: "delivery" not in [thread.name for thread in threading.enumerate()], 60, "the sending to end")
