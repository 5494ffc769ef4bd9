"""sshserver: an SSH server for a machine without OpenSSH's: one user's keys, one user's commands. Touches loopback.

It is run by its path, and imports nothing of ours. The door to real devices is `remote`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

import paramiko
from paramiko.common import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED,
    OPEN_SUCCEEDED,
)


class _Session(paramiko.ServerInterface):
    def __init__(self, authorized_keys: str) -> None:
        self._authorized = authorized_keys.split()

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        del username  # there is one user: the one that runs this
        return AUTH_SUCCESSFUL if key.get_base64() in self._authorized else AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        del username
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        del chanid
        return OPEN_SUCCEEDED if kind == "session" else OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=_run, args=(channel, command.decode()), daemon=True).start()
        return True


def _run(channel: paramiko.Channel, command: str) -> None:
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        cwd=os.environ["HOME"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    if process.stdin is None or process.stdout is None or process.stderr is None:  # asked for just above
        return
    threading.Thread(target=_feed, args=(channel, process.stdin), daemon=True).start()
    copies = [
        threading.Thread(target=_copy, args=(process.stdout, channel.sendall), daemon=True),
        threading.Thread(target=_copy, args=(process.stderr, channel.sendall_stderr), daemon=True),
    ]
    for copy in copies:
        copy.start()
    for copy in copies:
        copy.join()
    code = process.wait()
    with contextlib.suppress(OSError, EOFError):  # the other side has gone
        channel.send_exit_status(code)
        channel.close()


def _feed(channel: paramiko.Channel, stdin: IO[bytes]) -> None:
    with contextlib.suppress(OSError), stdin:  # the command has ended
        while data := channel.recv(65536):
            stdin.write(data)


def _copy(output: IO[bytes], send: Callable[[bytes], None]) -> None:
    with contextlib.suppress(OSError), output:  # the other side has gone
        while data := output.read(65536):
            send(data)


def serve(folder: Path, port: int) -> None:
    """Serve one sensor for ever.

    Args:
        folder: Where its host key and the keys that may log in are.
        port: Where it listens, on loopback.
    """
    key = paramiko.Ed25519Key.from_private_key_file(str(folder / "host_key"))
    allowed = (folder / "authorized_keys").read_text(encoding="ascii")
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(("127.0.0.1", port))
        door.listen(16)
        sys.stderr.write(f"Server listening on 127.0.0.1 port {port}.\n")  # as OpenSSH's says it
        while True:
            connection, _ = door.accept()
            transport = paramiko.Transport(connection)
            transport.add_server_key(key)
            # With an event it does not wait here, so that a client that says nothing holds up nobody.
            transport.start_server(event=threading.Event(), server=_Session(allowed))


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
