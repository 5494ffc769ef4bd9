"""The way to a device: a real sshd, real keys, and one clear line for each way in which it does not work."""

from __future__ import annotations

import ast
import contextlib
import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paramiko
import pytest
from paramiko.common import AUTH_SUCCESSFUL, OPEN_SUCCEEDED

from acoupi_fleet.device import wire
from acoupi_fleet.errors import HostError, HostKeyError, UnreachableError
from acoupi_fleet.inventory import Connection, Host, Origin
from acoupi_fleet.remote import HostKeys, LinkLostError, converse
from acoupi_fleet.remote import session as conversations
from acoupi_fleet.remote.connect import endpoint
from acoupi_fleet.remote.session import agent_source, start_line
from acoupi_fleet.together import together
from tests.support import new_key, running_sshd, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support import SshServer

DEVICE = Path(__file__).parents[1] / "acoupi_fleet/device"


def a_host(connection: Connection) -> Host:
    return Host("owl", connection, {}, (), Origin(Path("sensors.ini"), 1))


def way_to(sshd: SshServer, **changes: Any) -> Connection:
    pinned = Connection("127.0.0.1", sshd.port, sshd.user, sshd.identity, sshd.host_key, connect_timeout=30)
    return replace(pinned, **changes)


def keys_in(folder: Path, *lines: str) -> HostKeys:
    path = folder / "trusted"
    path.write_text("".join(f"{line}\n" for line in lines))
    return HostKeys([path])


def say_hello(connection: Connection, keys: HostKeys, accepted: Callable[[str], None] | None = None) -> str:
    """Run `echo hello` there."""
    with converse(a_host(connection), "user", keys=keys, accepted=accepted) as session:
        words = {"scope": "user", "argv": ["echo", "hello"], "as_service": False, "timeout": 60}
        return str(session.ask("run", words)["out"])


def refusal(connection: Connection, keys: HostKeys) -> HostError:
    """What the host's error is: one line that says what to do."""
    with pytest.raises(HostError) as refused:
        say_hello(connection, keys)
    assert "\n" not in str(refused.value)
    assert ";" in str(refused.value)
    return refused.value


@pytest.fixture(autouse=True)
def no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that the tester's own agent holds must not open doors here."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@contextlib.contextmanager
def server_that_says(*, words: bytes | None) -> Iterator[int]:
    """A TCP server that is no SSH server: it says one thing and closes, or says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                guest, _ = listening.accept()
                with guest:
                    if words is not None:
                        guest.sendall(words)
                    else:
                        stop.wait(60)

        stop = threading.Event()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            stop.set()
            thread.join()


def test_a_conversation_takes_one_command_and_leaves_nothing_on_the_device(sshd: SshServer, tmp_path: Path) -> None:
    before = sorted(sshd.home.rglob("*"))
    with converse(a_host(way_to(sshd)), "user", keys=keys_in(tmp_path)) as session:
        assert session.greeting.bits in {32, 64}
        assert session.greeting.uid == os.getuid()
        words = {"scope": "user", "as_service": False, "timeout": 60}
        said = session.ask("run", {**words, "argv": ["sh", "-c", "echo out; echo err >&2; exit 3"]})
        assert said == {"code": 3, "out": "out\n", "err": "err\n"}
        facts = session.ask("facts", {"scope": "user", "packages": [], "units": ["acoupi.target"], "workers": []})
        assert facts["release"] is None
        assert facts["machine"]["markers"]["sys_platform"] == "linux"
    assert sorted(sshd.home.rglob("*")) == before


def test_what_a_login_shell_prints_does_not_disturb(sshd: SshServer, tmp_path: Path) -> None:
    (sshd.home / ".bashrc").write_text("echo Welcome to this sensor; echo mind the step >&2\n")
    assert say_hello(way_to(sshd), keys_in(tmp_path)) == "hello\n"


def test_a_verb_that_the_device_does_not_know_is_a_mistake_of_ours_and_says_so(sshd: SshServer, tmp_path: Path) -> None:
    with (
        converse(a_host(way_to(sshd)), "user", keys=keys_in(tmp_path)) as session,
        pytest.raises(HostError, match="no such verb: dance"),
    ):
        session.ask("dance", {})


def test_a_device_without_python_is_told_in_one_line(sshd: SshServer, tmp_path: Path) -> None:
    (sshd.home / ".bashrc").write_text('mkdir -p ~/bin; ln -sf "$(command -v sh)" ~/bin/sh; PATH=~/bin\n')
    assert "there is no python3; install it" in str(refusal(way_to(sshd), keys_in(tmp_path)))


def test_a_device_with_an_ancient_python_is_told_in_one_line(sshd: SshServer, tmp_path: Path) -> None:
    python = sshd.home / "bin/python3"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\nexec /usr/bin/python3 -c "import sys; sys.version_info = (3, 5, 3, 0, 0); $4"\n')
    python.chmod(0o755)
    (sshd.home / ".bashrc").write_text("PATH=~/bin:$PATH\n")
    assert "Python 3.5.3 is too old, 3.11 is needed" in str(refusal(way_to(sshd), keys_in(tmp_path)))


def test_a_name_that_does_not_resolve(tmp_path: Path) -> None:
    error = refusal(Connection("no-such-sensor.invalid", user="pi"), keys_in(tmp_path))
    assert isinstance(error, UnreachableError)
    assert "no-such-sensor.invalid: this name does not resolve" in str(error)


def test_a_port_that_refuses(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take it meanwhile
        error = refusal(Connection("127.0.0.1", taken.getsockname()[1], "pi"), keys_in(tmp_path))
    assert isinstance(error, UnreachableError)
    assert "the connection is refused" in str(error)


def test_a_host_that_does_not_answer_is_given_up_after_the_connect_timeout(tmp_path: Path) -> None:
    with socket.socket() as full, contextlib.ExitStack() as guests:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # its queue is full after one or two: further packets are dropped in silence
            guest = guests.enter_context(socket.socket())
            guest.settimeout(0)
            guest.connect_ex(full.getsockname())
        connection = Connection("127.0.0.1", full.getsockname()[1], "pi", connect_timeout=1)
        error = refusal(connection, keys_in(tmp_path))
    assert isinstance(error, UnreachableError)
    assert "no answer within 1 s" in str(error)


@pytest.mark.parametrize("words", [b"HTTP/1.1 400 Bad Request\r\n\r\n", None], ids=["another", "silent"])
def test_a_server_that_does_not_speak_ssh(words: bytes | None, tmp_path: Path) -> None:
    with server_that_says(words=words) as port:
        error = refusal(Connection("127.0.0.1", port, "pi", connect_timeout=1), keys_in(tmp_path))
    assert isinstance(error, UnreachableError)
    assert "is this an SSH server" in str(error)


def test_a_server_that_does_not_accept_the_key(sshd: SshServer, tmp_path: Path) -> None:
    new_key(tmp_path / "other", "another")
    error = refusal(way_to(sshd, identity=tmp_path / "other"), keys_in(tmp_path))
    assert isinstance(error, UnreachableError)
    assert f"ssh-copy-id -i {tmp_path / 'other'}.pub -p {sshd.port}" in str(error)


def test_key_files_that_cannot_be_used(sshd: SshServer, tmp_path: Path) -> None:
    (tmp_path / "garbage").write_text("this is no key\n")
    locked = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "passphrase", "-f", locked], check=True, timeout=60)
    for path, line in (
        (tmp_path / "missing", "there is no such key file"),
        (tmp_path / "garbage", "this is no private key"),
        (sshd.identity.with_name(f"{sshd.identity.name}.pub"), "the public half of a key"),
        (locked, f"ssh-add {locked}"),
    ):
        error = refusal(way_to(sshd, identity=path), keys_in(tmp_path))
        assert isinstance(error, UnreachableError)
        assert line in str(error)
        assert str(path) in str(error)


def test_a_host_key_that_nobody_vouched_for_is_refused_before_anything_is_sent(sshd: SshServer, tmp_path: Path) -> None:
    error = refusal(way_to(sshd, host_key=None), keys_in(tmp_path))
    assert isinstance(error, HostKeyError)
    assert "is not known here; nothing was sent" in str(error)
    assert fingerprint(sshd) in str(error)
    assert "Accepted" not in sshd.log.read_text()


def test_a_changed_host_key_is_refused_before_anything_is_sent(sshd: SshServer, tmp_path: Path) -> None:
    was = new_key(tmp_path / "was", "before the card was written anew")
    error = refusal(way_to(sshd, host_key=None), keys_in(tmp_path, f"[127.0.0.1]:{sshd.port} {was}"))
    assert isinstance(error, HostKeyError)
    assert f"ssh-keygen -R '[127.0.0.1]:{sshd.port}'" in str(error)
    assert "Accepted" not in sshd.log.read_text()


def test_the_inventory_may_name_the_key_or_its_fingerprint_and_no_other_will_do(
    sshd: SshServer, tmp_path: Path
) -> None:
    assert say_hello(way_to(sshd, host_key=fingerprint(sshd)), keys_in(tmp_path)) == "hello\n"
    assert say_hello(way_to(sshd, host_key=f"{sshd.host_key} a comment"), keys_in(tmp_path)) == "hello\n"
    other = new_key(tmp_path / "other", "another")
    trusted = keys_in(tmp_path, f"[127.0.0.1]:{sshd.port} {sshd.host_key}")
    error = refusal(way_to(sshd, host_key=other), trusted)
    assert isinstance(error, HostKeyError)
    assert "the inventory's host_key is another" in str(error)


def test_a_hashed_line_of_known_hosts_is_enough(sshd: SshServer, tmp_path: Path) -> None:
    keys = keys_in(tmp_path, f"[127.0.0.1]:{sshd.port} {sshd.host_key}", "[127.0.0.1]:1 ssh-rsa AAAA")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", tmp_path / "trusted"], check=True, capture_output=True, timeout=60)
    assert "127.0.0.1" not in (tmp_path / "trusted").read_text().splitlines()[0]
    assert say_hello(way_to(sshd, host_key=None), keys) == "hello\n"


def test_a_revoked_key_is_refused_even_where_new_ones_are_accepted(sshd: SshServer, tmp_path: Path) -> None:
    keys = keys_in(tmp_path, f"@revoked * {sshd.host_key}")
    with pytest.raises(HostKeyError, match="is revoked"):
        say_hello(way_to(sshd, host_key=None), keys, accepted=print)


def test_a_revoked_key_is_refused_whoever_else_vouches_for_it(sshd: SshServer, tmp_path: Path) -> None:
    trusted, revoked = f"[127.0.0.1]:{sshd.port} {sshd.host_key}", f"@revoked * {sshd.host_key}"
    other = f"[127.0.0.1]:{sshd.port} {new_key(tmp_path / 'other', 'its new one')}"
    for lines, pinned in (
        ([trusted, revoked], None),
        ([revoked, trusted], None),
        ([trusted, other, revoked], None),
        ([revoked], sshd.host_key),
        ([revoked], fingerprint(sshd)),
    ):
        error = refusal(way_to(sshd, host_key=pinned), keys_in(tmp_path, *lines))
        assert isinstance(error, HostKeyError)
        assert "is revoked" in str(error)
    assert "Accepted" not in sshd.log.read_text()


def test_known_keys_that_cannot_be_read_vouch_for_nobody_in_one_line(sshd: SshServer, tmp_path: Path) -> None:
    unreadable = tmp_path / "known_hosts"
    unreadable.symlink_to("/proc/self/mem")  # root, too, cannot read its beginning
    error = refusal(way_to(sshd, host_key=None), HostKeys([unreadable]))
    assert isinstance(error, HostKeyError)
    assert str(error).startswith(f"{unreadable}: the known host keys cannot be read")
    assert "Accepted" not in sshd.log.read_text()


def test_a_key_that_takes_a_revoked_ones_place_is_trusted(sshd: SshServer, tmp_path: Path) -> None:
    old, name = new_key(tmp_path / "old", "its old one"), f"[127.0.0.1]:{sshd.port}"
    keys = keys_in(tmp_path, f"{name} {old}", f"{name} {sshd.host_key}", f"@revoked * {old}")
    assert say_hello(way_to(sshd, host_key=None), keys) == "hello\n"


def test_a_new_key_is_accepted_when_asked_for_shown_and_remembered(sshd: SshServer, tmp_path: Path) -> None:
    path = tmp_path / "ssh/known_hosts"
    lines: list[str] = []
    assert say_hello(way_to(sshd, host_key=None), HostKeys([path]), accepted=lines.append) == "hello\n"
    (line,) = lines
    assert fingerprint(sshd) in line
    assert path.read_text() == f"[127.0.0.1]:{sshd.port} {sshd.host_key}\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert say_hello(way_to(sshd, host_key=None), HostKeys([path])) == "hello\n"


def test_a_new_key_that_cannot_be_remembered_is_not_accepted(sshd: SshServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostKeyError, match=r"cannot be remembered: .*; nothing was sent; correct its mode"):
        say_hello(way_to(sshd, host_key=None), HostKeys([tmp_path / "file/known_hosts"]), accepted=print)


def test_a_link_that_is_lost_in_the_middle_is_told_and_the_device_goes_on(sshd: SshServer, tmp_path: Path) -> None:
    script = 'touch "$0/began"; while test -e "$0/wait"; do sleep 0.1; done; touch "$0/ended"'
    (tmp_path / "wait").touch()
    words = {"scope": "user", "argv": ["sh", "-c", script, str(tmp_path)], "as_service": False, "timeout": 240}

    def cut() -> None:
        wait_until((tmp_path / "began").exists, 120, "the command to begin")
        sshd.hang_up()

    with converse(a_host(way_to(sshd)), "user", keys=keys_in(tmp_path)) as session:
        thread = threading.Thread(target=cut)
        thread.start()
        with pytest.raises(LinkLostError, match="outcome unknown; run again"):
            session.ask("run", words)
        thread.join()
    (tmp_path / "wait").unlink()
    wait_until((tmp_path / "ended").exists, 120, "the command to end although nobody listens")


class Fickle(paramiko.ServerInterface):
    """An SSH server that lets everybody in, and cuts the link at one moment, or says nothing more from then on."""

    def __init__(self, transport: paramiko.Transport, moment: str) -> None:
        self._transport = transport
        self._moment = moment
        self.over = threading.Event()

    def get_allowed_auths(self, username: str) -> str:
        del username
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        del username, key
        return AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        del kind, chanid
        if self._moment == "session":
            self._transport.close()
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        del command
        if self._moment == "command":
            self._transport.close()
        if self._moment == "silence":
            self.over.wait(240)
        if self._moment == "agent":
            threading.Thread(target=self._greet, args=(channel,), daemon=True).start()
        return True

    def _greet(self, channel: paramiko.Channel) -> None:
        """Say hello, let as much of the agent come as the window takes, and go."""
        channel.sendall(f'{wire.GREETING}[[3, 11, 2], "x86_64", 64, 1000]\n'.encode())
        wait_until(channel.recv_ready, 120, "the agent to come")
        self._transport.close()


@contextlib.contextmanager
def fickle_server(moment: str, key: Path) -> Iterator[int]:
    """Run such a server for one guest, with a key that the guest knows."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            guest, _ = listening.accept()
            transport = paramiko.Transport(guest, default_window_size=1 << 15)
            transport.add_server_key(paramiko.PKey.from_path(key))
            server = Fickle(transport, moment)
            servers.append(server)
            transport.start_server(event=threading.Event(), server=server)

        servers: list[Fickle] = []
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            thread.join(60)
            for server in servers:
                server.over.set()


@pytest.mark.parametrize("moment", ["session", "command", "silence", "agent"])
def test_a_link_that_is_lost_before_the_first_question_is_a_host_out_of_reach(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "SILENCE_SECONDS", 1.0 if moment == "silence" else 60.0)
    key = new_key(tmp_path / "key", "everybody's")
    with fickle_server(moment, tmp_path / "key") as port:
        way = Connection("127.0.0.1", port, "pi", tmp_path / "key", key, connect_timeout=30)
        error = refusal(way, keys_in(tmp_path))
    assert isinstance(error, UnreachableError)
    assert str(error) == "127.0.0.1: the link was lost before anything was sent; run again"


def test_a_server_that_opens_no_session_is_one_host_s_failure_and_the_others_have_their_results(
    sshd: SshServer, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    with running_sshd(tmp_path / "full", sessions=0) as full:
        hosts = [a_host(way_to(full)), a_host(way_to(sshd))]
        results = {
            host.connection.port: result
            for host, result in together(hosts, 2, lambda host: say_hello(host.connection, keys_in(tmp_path)))
        }
    assert results[sshd.port] == "hello\n"
    error = results[full.port]
    assert isinstance(error, UnreachableError)
    assert "its SSH server opens no session" in str(error)
    assert "; look at MaxSessions" in str(error)


def test_a_link_that_is_lost_after_the_last_answer_costs_nothing(
    sshd: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: paramiko.Channel) -> None:
        raise paramiko.SSHException("Key-exchange timed out waiting for key negotiation")

    monkeypatch.setattr(paramiko.Channel, "shutdown_write", lost)
    assert say_hello(way_to(sshd), keys_in(tmp_path)) == "hello\n"


def configured(folder: Path, monkeypatch: pytest.MonkeyPatch, config: str) -> None:
    """Let every `ssh` read this configuration instead of the tester's own."""
    (folder / "config").write_text(config)
    wrapper = folder / "bin/ssh"
    wrapper.parent.mkdir(exist_ok=True)
    wrapper.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {folder}/config "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")


def test_openssh_s_own_configuration_is_asked_and_the_inventory_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_key(tmp_path / "key", "mine")
    (tmp_path / "more").write_text(
        f"Host owl\n HostName 10.1.2.3\n Port 2200\n User nina\n IdentityFile {tmp_path}/key\n"
    )
    configured(tmp_path, monkeypatch, f"Include {tmp_path}/more\nMatch host 10.1.2.3\n ProxyJump gate\n")
    told = endpoint(Connection("owl"))
    assert (told.address, told.port, told.user, told.identities) == ("10.1.2.3", 2200, "nina", (tmp_path / "key",))
    assert told.proxy == "ssh -W '[10.1.2.3]:2200' -- gate"
    mine = endpoint(Connection("owl", 22, "pi", tmp_path / "mine"))
    assert (mine.port, mine.user, mine.identities) == (22, "pi", (tmp_path / "mine",))


@pytest.mark.parametrize(
    ("setting", "proxy"),
    [
        ("ProxyJump none", None),
        ("ProxyJump nina@gate:2222", "ssh -l nina -p 2222 -W '[owl]:22' -- gate"),
        ("ProxyJump a,nina@b:2222,c", "ssh -J a,nina@b:2222 -W '[owl]:22' -- c"),
        ("ProxyJump ssh://x@a:1,ssh://nina@b:2", "ssh -J ssh://x@a:1 -l nina -p 2 -W '[owl]:22' -- b"),
        ("ProxyJump nina@[fe80::1]:2222", "ssh -l nina -p 2222 -W '[owl]:22' -- fe80::1"),
        ("ProxyJump 10.0.0.1", "ssh -W '[owl]:22' -- 10.0.0.1"),
        ("ProxyCommand none", None),
        ("ProxyCommand nc -x 'a b' %h %p", "nc -x 'a b' owl 22"),
    ],
)
def test_the_way_over_other_hosts_is_openssh_s(
    setting: str, proxy: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(tmp_path, monkeypatch, f"Host owl\n {setting}\n")
    assert endpoint(Connection("owl")).proxy == proxy


def our_children() -> set[str]:
    """The processes that this one has started, those that nobody waited for among them."""
    return {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


def test_a_sensor_behind_two_hops_is_reached(sshd: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hops").write_text(f"first,second,third {sshd.host_key}\n")
    hop = f"{sshd.user}@{{}}:{sshd.port}"
    configured(
        tmp_path,
        monkeypatch,
        f"Host owl\n ProxyJump {hop.format('first')},{hop.format('second')}\n"
        "Host owl first second\n HostName 127.0.0.1\n"
        f"Host first\n HostKeyAlias first\nHost second\n HostKeyAlias second\n"
        f"Host *\n IdentityFile {sshd.identity}\n UserKnownHostsFile {tmp_path}/hops\n BatchMode yes\n",
    )
    before = our_children()
    assert say_hello(way_to(sshd, address="owl"), keys_in(tmp_path)) == "hello\n"
    assert our_children() == before, "the proxy's command is ended and waited for"
    assert sshd.log.read_text().count("Accepted publickey") == 3


@pytest.mark.parametrize("command", ["no-such-program %h %p", "nc %h %p \\", "''", "/etc %h"])
def test_a_proxy_command_that_cannot_be_run(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(tmp_path, monkeypatch, f"Host owl\n ProxyCommand {command}\n")
    error = refusal(Connection("owl", user="pi"), keys_in(tmp_path))
    assert isinstance(error, UnreachableError)
    assert str(error).startswith("pi@owl: its ProxyCommand `")
    assert str(error).endswith("; correct it in ~/.ssh/config")


def test_the_command_line_holds_no_secret_and_nothing_of_the_inventory() -> None:
    lines = {start_line(scope, password=password) for scope in ("system", "user") for password in (True, False)}
    assert len(lines) == 3
    assert all("\n" not in line for line in lines)


def test_the_agent_is_python_3_7_and_the_standard_library() -> None:
    imported = set()
    for path in DEVICE.glob("*.py"):
        tree = ast.parse(path.read_text(), path.name, feature_version=(3, 7))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    assert imported - sys.stdlib_module_names == {"acoupi_fleet"}
    agent = agent_source().decode()
    modules = [path.stem for path in DEVICE.glob("*.py") if path.stem != "__init__"]
    assert [name for name in modules if f'"acoupi_fleet.device.{name}": ' not in agent] == []


def fingerprint(sshd: SshServer) -> str:
    """What OpenSSH says of the server's key."""
    public = sshd.identity.with_name("host_key.pub")
    done = subprocess.run(["ssh-keygen", "-l", "-f", public], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.split()[1]
