"""tunnel: the HTTP proxy through which a device's apt uses this computer's connection. Touches the network.

One connection of apt is one call of `serve`; `remote` brings it here through SSH, and only while apt runs. It speaks
what apt speaks (GET and HEAD of whole addresses, CONNECT), and goes where the environment's http_proxy, https_proxy
and no_proxy would send any program here. It opens no door to this computer itself, and none but the web's own two.
"""

from __future__ import annotations

import base64
import contextlib
import io
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler
from typing import Any, Protocol
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

PORTS = (80, 443)
PATIENCE_SECONDS = 20.0
_PIECE = 1 << 16
_HOP_BY_HOP = {
    *("connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization"),
    *("te", "trailer", "transfer-encoding", "upgrade"),
}


class Wire(Protocol):
    """A connection of apt: a socket, or a channel of SSH."""

    def recv(self, size: int, /) -> bytes: ...  # noqa: D102
    def sendall(self, data: bytes, /) -> None: ...  # noqa: D102
    def shutdown(self, how: int, /) -> None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class RefusedError(Exception):
    """What is asked for is not done; its text becomes the line that apt shows."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


def reach(host: str, port: int) -> socket.socket:
    """Connect to a host of the web.

    Raises:
        RefusedError: It cannot be reached, or must not be.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        raise RefusedError(HTTPStatus.BAD_GATEWAY, f"{host} does not resolve on the workstation") from None
    reason = "no address"
    for family, kind, protocol, _, place in found:
        _refuse_own(str(place[0]))
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(PATIENCE_SECONDS)
            sock.connect(place)
        except OSError as error:
            sock.close()
            reason = error.strerror or "no answer"
        else:
            return sock
    raise RefusedError(HTTPStatus.BAD_GATEWAY, f"{host} port {port} from the workstation: {reason}")


def _refuse_own(address: str) -> None:
    """This computer's own services, and what only its own cable reaches, are not what apt looks for."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        if address.lower() != "localhost":
            return
    else:
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if not (ip.is_loopback or ip.is_link_local or ip.is_unspecified or ip.is_multicast):
            return
    raise RefusedError(HTTPStatus.FORBIDDEN, f"{address} is the workstation itself or its own cable")


def _next_proxy(scheme: str, host: str) -> SplitResult | None:
    """The proxy that the environment names for this way, as urllib and curl read it."""
    said = getproxies_environment().get(scheme)
    if not said or proxy_bypass(host):
        return None
    proxy = urlsplit(said if "://" in said else f"http://{said}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise RefusedError(HTTPStatus.BAD_GATEWAY, f"{scheme}_proxy on the workstation is no http:// proxy")
    return proxy


def _credentials(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def serve(wire: Wire, *, reach: Callable[[str, int], socket.socket] = reach) -> None:
    """Serve one connection until either end has enough of it.

    Args:
        wire: The connection; it is closed at the end.
        reach: Opens a connection to a host and a port, or refuses.
    """
    try:
        with contextlib.suppress(OSError):
            _Apt(wire, reach)
    finally:
        with contextlib.suppress(OSError):
            wire.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads, if there is one
        wire.close()


class _Bytes(io.RawIOBase):
    """What comes over a wire, as a stream: SSH's channels have no buffered reading that can be emptied."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._wire.recv(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


class _Apt(BaseHTTPRequestHandler):
    """One connection of apt: requests, one after the other."""

    protocol_version = "HTTP/1.1"

    def __init__(self, wire: Wire, reach: Callable[[str, int], socket.socket]) -> None:
        self._wire = wire
        self._reach = reach
        super().__init__(wire, ("", 0), None)  # type: ignore[arg-type]

    def setup(self) -> None:
        self.rfile = io.BufferedReader(_Bytes(self._wire))
        self.wfile = _Out(self._wire)

    def finish(self) -> None:
        """Leave the streams open: another thread may read; `serve` closes what is below them."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing: apt tells what it does."""

    def do_GET(self) -> None:
        """Fetch for apt; an answer that breaks off in the middle breaks off there too, so that apt notices."""
        begun = False
        try:
            with contextlib.closing(self._asked()) as connection:
                answer = connection.getresponse()
                begun = True
                self._pass_on(answer)
        except RefusedError as refused:
            self._refuse(refused)
        except (HTTPException, OSError) as error:
            if begun:
                self.close_connection = True
            else:
                self._refuse(RefusedError(HTTPStatus.BAD_GATEWAY, f"no answer to the workstation: {error}"))

    do_HEAD = do_GET  # noqa: N815 - the base class's name

    def do_CONNECT(self) -> None:
        """Lead through, unread: https stays between apt and its server."""
        try:
            server = self._led()
        except RefusedError as refused:
            self._refuse(refused)
            return
        self.close_connection = True
        with server:
            self.send_response_only(HTTPStatus.OK, "Connection established")
            self.end_headers()
            threading.Thread(target=self._upwards, args=(server,), daemon=True).start()
            while piece := server.recv(_PIECE):
                self.wfile.write(piece)

    def _asked(self) -> HTTPConnection:
        """Send apt's request on, to the server or to the next proxy."""
        if self.headers.get("Transfer-Encoding") or self.headers.get("Content-Length", "0") != "0":
            self.close_connection = True  # what follows is no request
            raise RefusedError(HTTPStatus.BAD_REQUEST, "apt's requests have no body")
        url = urlsplit(self.path)
        host, port = _place(url, 80)
        if url.scheme != "http":
            raise RefusedError(HTTPStatus.BAD_REQUEST, "this is a proxy for apt: GET http://... and CONNECT")
        proxy = _next_proxy("http", host)
        headers = dict(_end_to_end(self.headers)) | {"Host": url.netloc.rpartition("@")[2], "Connection": "close"}
        if proxy is None:
            connection = HTTPConnection(host, port)
            connection.sock = self._reach(host, port)
            target = url._replace(scheme="", netloc="", path=url.path or "/").geturl()
        else:
            connection = HTTPConnection(proxy.hostname or "", proxy.port or 80, timeout=PATIENCE_SECONDS)
            target, headers = self.path, headers | _credentials(proxy)
        try:
            connection.putrequest(self.command, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
        except BaseException:
            connection.close()
            raise
        return connection

    def _pass_on(self, answer: HTTPResponse) -> None:
        empty = self.command == "HEAD" or answer.status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
        chunked = not empty and answer.length is None
        self.send_response_only(answer.status, answer.reason)
        for name, value in _end_to_end(answer.headers):
            if not (chunked and name.lower() == "content-length"):
                self.send_header(name, value)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while not empty and (piece := answer.read(_PIECE)):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")
        elif not empty and answer.length:
            self.close_connection = True

    def _led(self) -> socket.socket:
        """A connection to the server that CONNECT names, through the next proxy where there is one."""
        host, port = _place(urlsplit(f"//{self.path}"), 443)
        proxy = _next_proxy("https", host)
        if proxy is None:
            return self._reach(host, port)
        connection = HTTPConnection(proxy.hostname or "", proxy.port or 80, timeout=PATIENCE_SECONDS)
        connection.set_tunnel(host, port, _credentials(proxy))
        try:
            connection.connect()
        except (HTTPException, OSError) as error:
            connection.close()
            raise RefusedError(HTTPStatus.BAD_GATEWAY, f"https_proxy of the workstation: {error}") from None
        return connection.sock

    def _upwards(self, server: socket.socket) -> None:
        """What apt says, until it has said all; then the other direction ends too."""
        with contextlib.suppress(OSError):
            while piece := self.rfile.read1(_PIECE):
                server.sendall(piece)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _refuse(self, refused: RefusedError) -> None:
        """Say why in the line that apt shows, and stay open: what else apt has asked for may be possible."""
        line = " ".join(str(refused).split()).encode("ascii", "replace").decode()
        self.send_response_only(refused.status, line)
        self.send_header("Content-Length", "0")
        self.end_headers()


class _Out(io.BufferedIOBase):
    """Where the answer goes."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._wire.sendall(bytes(data))
        return len(data)


def _place(url: SplitResult, port: int) -> tuple[str, int]:
    """The host and port of an address that apt may ask for."""
    try:
        host, port = url.hostname or "", url.port or port
    except ValueError:
        host = ""
    if not host:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "this is a proxy for apt: GET http://... and CONNECT")
    if port not in PORTS:
        raise RefusedError(HTTPStatus.FORBIDDEN, f"port {port} is not lent, only 80 and 443")
    _refuse_own(host)
    return host, port


def _end_to_end(headers: Any) -> Iterator[tuple[str, str]]:
    """The headers that are not only about one connection."""
    named = {word.strip().lower() for line in headers.get_all("Connection", []) for word in line.split(",")}
    for name, value in headers.items():
        if name.lower() not in _HOP_BY_HOP | named:
            yield name, value
