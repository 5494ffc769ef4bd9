"""sshserver: an SSH server for a machine without OpenSSH's: public keys, and commands of one user. Touches loopback.

With demo.sensor it is the only part of a demonstration that uses paramiko; the door to real devices is `remote`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

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
        known = key.get_base64() in self._authorized
        return AUTH_SUCCESSFUL if known else AUTH_FAILED

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
    )
    if process.stdin is None or process.stdout is None or process.stderr is None:  # asked for just above
        return
    threads = [
        threading.Thread(target=_copy, args=(process.stdout.fileno(), channel.sendall), daemon=True),
        threading.Thread(target=_copy, args=(process.stderr.fileno(), channel.sendall_stderr), daemon=True),
    ]
    for thread in threads:
        thread.start()
    threading.Thread(target=_feed, args=(channel, process), daemon=True).start()
    code = process.wait()
    for thread in threads:
        thread.join()
    channel.send_exit_status(code)
    channel.close()


def _copy(source: int, send: Callable[[bytes], None]) -> None:
    while data := os.read(source, 65536):
        try:
            send(data)
        except OSError:  # the other side has gone
            return


def _feed(channel: paramiko.Channel, process: subprocess.Popen[bytes]) -> None:
    if process.stdin is None:
        return
    try:
        while data := channel.recv(65536):
            process.stdin.write(data)
            process.stdin.flush()
        process.stdin.close()
    except (OSError, ValueError):  # the command has ended
        return


def serve(folder: Path, port: int) -> None:
    """Serve one sensor for ever."""
    key = paramiko.Ed25519Key.from_private_key_file(str(folder / "host_key"))
    allowed = (folder / "authorized_keys").read_text(encoding="ascii")
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(("127.0.0.1", port))
        door.listen(16)
        while True:
            connection, _ = door.accept()
            transport = paramiko.Transport(connection)
            transport.add_server_key(key)
            transport.start_server(event=threading.Event(), server=_Session(allowed))


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
