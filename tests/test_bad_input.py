"""Whatever a person gets wrong is one line, `where: what; what to do`, with its exit code; never a traceback."""

from __future__ import annotations

import os
import pwd
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import wave
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from acoupi_fleet.cli import main
from tests.support import free_port, new_key, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Fleet, MakeSensor
    from tests.sensors import Sensor
    from tests.support import SshServer

GOOD = "lab host=127.0.0.1 port=1 user=pi program=default"


class Said(NamedTuple):
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that tell what is wrong, wherever they stand."""
        return [line for line in (self.out + self.err).splitlines() if re.search(r"\berror:|; |\?$", line)]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """The command line in this process, with a home directory of its own and without an agent."""
    home = tmp_path / "workstation"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path) -> Said:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Said(code, out, err)

    return run


def inventory(folder: Path, *lines: str) -> Path:
    path = folder / "sensors.ini"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


WRONG_BEFORE_ANYTHING_IS_CONTACTED = {
    "no such command": (["provison", "x"], [], "'provison' is no command; did you mean provision?"),
    "no inventory named": (
        ["provision"],
        [],
        "the following arguments are required: INVENTORY; see acoupi-fleet provision",
    ),
    "an option that does not exist": (["status", "{ini}", "--fork", "0"], [GOOD], "'0' is no count; give 1 or more"),
    "a time that is none": (["status", "{ini}", "--timeout", "-3"], [GOOD], "'-3' is no time; give seconds"),
    "a missing inventory": (["provision", "nowhere.ini"], [], "nowhere.ini: there is no such file; name an inventory"),
    "a folder": (["provision", "."], [], "it is a folder; name the file in it"),
    "an empty inventory": (["check", "{ini}"], ["# nothing"], "it holds no host; write one a line"),
    "a pattern that matches nothing": (
        ["provision", "{ini}", "--limit", "lag*"],
        [GOOD],
        "--limit 'lag*': 'lag*' matches no host and no group; ",
    ),
    "a slip in a pattern": (["restart", "{ini}", "--limit", "labb"], [GOOD], "did you mean lab?"),
    "a group without hosts": (
        ["provision", "{ini}", "--limit", "pond"],
        [GOOD, "[pond]"],
        "the group 'pond' has no hosts; correct the pattern",
    ),
    "a wrong type": (
        ["provision", "{ini}"],
        [GOOD, "[all:vars]", "program.recording.duration=long"],
        "sensors.ini:3: program.recording.duration: ",
    ),
    "a misspelt key": (
        ["provision", "{ini}"],
        [GOOD + " program.microphone.sampelrate=48000"],
        "sensors.ini:1: program.microphone.sampelrate: unknown key; did you mean program.microphone.samplerate?",
    ),
    "no program": (["render", "{ini}", "--output", "out"], ["lab"], "lab: no program is named; write program=default"),
    "a host that the inventory has not": (["inventory", "{ini}", "--host", "pond"], [GOOD], "no such host"),
    "a device that is none": (["doctor", "pi@-oProxyCommand=x"], [], "-oProxyCommand=x"),
    "half a version": (
        ["prepare", "{ini}", "--python", "3.11", "--machine", "aarch64"],
        [GOOD],
        "--python 3.11: the whole version is needed, such as 3.11.2",
    ),
    "half a device": (["prepare", "{ini}", "--python", "3.11.2"], [GOOD], "--python and --machine belong together"),
    "32-bit ARM": (
        ["prepare", "{ini}", "--python", "3.11.2", "--machine", "armv7l"],
        [GOOD],
        "--machine armv7l: there are no wheels for it; use one of aarch64, x86_64",
    ),
}


@pytest.mark.parametrize("name", WRONG_BEFORE_ANYTHING_IS_CONTACTED)
def test_a_wrong_word_is_one_line_and_exit_code_1(name: str, run: Callable[..., Said], tmp_path: Path) -> None:
    words, lines, expected = WRONG_BEFORE_ANYTHING_IS_CONTACTED[name]
    path = inventory(tmp_path, *lines)
    said = run(*(word.format(ini=path) for word in words))
    assert (said.code, said.out) == (1, "")
    assert re.fullmatch(r"error: [^\n]+\n", said.err), "one line"
    assert expected in said.err
    assert not (tmp_path / "out").exists()


def test_all_mistakes_of_an_inventory_are_told_at_once(run: Callable[..., Said], tmp_path: Path) -> None:
    path = inventory(
        tmp_path, f"{GOOD} program.recording.durration=3", f"{GOOD.replace('lab', 'pond')} celery.timezone=Mars"
    )
    said = run("provision", path)
    assert said.code == 1
    assert [line.split(":")[2] for line in said.err.splitlines()] == ["1", "2"], said.err


class Silent:
    """Something that listens on a port and is no SSH server."""

    def __init__(self, answer: bytes | None, *, accepts: bool = True) -> None:
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(0 if not accepts else 16)
        self.port: int = self.socket.getsockname()[1]
        self.held: list[socket.socket] = []
        if accepts:
            threading.Thread(target=self._serve, args=(answer,), daemon=True).start()
        else:
            self._fill()

    def _serve(self, answer: bytes | None) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.held.append(connection)
            if answer is not None:
                connection.sendall(answer)

    def _fill(self) -> None:
        """Take all places of the queue, so that the kernel answers nobody else."""
        for _ in range(4):
            waiting = socket.socket()
            waiting.settimeout(0)
            waiting.connect_ex(("127.0.0.1", self.port))
            self.held.append(waiting)

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        for each in (self.socket, *self.held):
            each.close()


@pytest.fixture
def listening() -> Iterator[Callable[..., Silent]]:
    """Makes ports at which nobody speaks SSH."""
    made: list[Silent] = []

    def make(answer: bytes | None = None, *, accepts: bool = True) -> Silent:
        made.append(Silent(answer, accepts=accepts))
        return made[-1]

    yield make
    for each in made:
        each.close()


def unreachable(said: Said, host: str, expected: str) -> None:
    """It counts as unreachable, in one line that says why."""
    assert said.code == 4, said
    lines = [line for line in said.out.splitlines() if line.startswith("unreachable")]
    assert len(lines) == 1, said.out
    assert lines[0].split()[1] == host
    assert expected in lines[0]
    assert f"{host} : ok=0  changed=0  unreachable=1  failed=0  skipped=0" in said.out


def test_a_name_that_does_not_resolve(run: Callable[..., Said], tmp_path: Path) -> None:
    said = run("provision", inventory(tmp_path, "lab host=no-such-sensor.invalid program=default"))
    unreachable(said, "lab", "no-such-sensor.invalid: this name does not resolve; correct it, or set host=ADDRESS")


def test_a_port_that_refuses(run: Callable[..., Said], tmp_path: Path) -> None:
    port = free_port()
    said = run("restart", inventory(tmp_path, f"lab host=127.0.0.1 port={port} program=default"))
    unreachable(said, "lab", f"127.0.0.1 port {port}: the connection is refused; is its SSH server running")


def test_a_host_that_does_not_answer(
    run: Callable[..., Said], listening: Callable[..., Silent], tmp_path: Path
) -> None:
    deaf = listening(accepts=False)
    path = inventory(tmp_path, f"lab host=127.0.0.1 port={deaf.port} program=default")
    unreachable(run("provision", path, "--timeout", "0.5"), "lab", "no answer within 0.5 s; is it on")


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silent", "a web server"])
def test_something_else_than_an_ssh_server(
    answer: bytes | None, run: Callable[..., Said], listening: Callable[..., Silent], tmp_path: Path
) -> None:
    other = listening(answer)
    path = inventory(tmp_path, f"lab host=127.0.0.1 port={other.port} program=default")
    unreachable(run("provision", path, "--timeout", "1"), "lab", "is this an SSH server")


def encrypted_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "a secret", "-f", path], check=True, timeout=60)


KEYS: dict[str, tuple[Callable[[Path], object], str]] = {
    "it does not exist": (Path.absolute, "there is no such key file; correct `identity` in the inventory"),
    "it is no key": (lambda path: path.write_text("hello\n"), "this is no private key; correct `identity`"),
    "it is the public half": (
        lambda path: (new_key(path, "x"), path.write_bytes(path.with_suffix(".pub").read_bytes())),
        "this is the public half of a key",
    ),
    "it has a passphrase, and no agent holds it": (
        encrypted_key,
        "has a passphrase and no agent holds it; run `ssh-add",
    ),
    "the server does not accept it": (lambda path: new_key(path, "x"), "put its public half there: ssh-copy-id"),
}


@pytest.mark.parametrize("name", KEYS)
def test_a_key_that_does_not_open_the_door(
    name: str, run: Callable[..., Said], sshd: SshServer, tmp_path: Path
) -> None:
    make, expected = KEYS[name]
    key = tmp_path / "key"
    make(key)
    line = sshd.inventory_line("lab", identity=key, host_key=sshd.host_key, program="default", systemd_scope="user")
    unreachable(run("provision", inventory(tmp_path, line)), "lab", expected)


def test_an_unknown_host_key_is_refused_before_anything_is_sent(
    run: Callable[..., Said], sshd: SshServer, tmp_path: Path
) -> None:
    path = inventory(tmp_path, sshd.inventory_line("lab", program="default", systemd_scope="user"))
    said = run("provision", path)
    assert said.code == 5
    assert re.search(
        r"failed +lab +\S+: its host key SHA256:\S+ \(ssh-ed25519\) is not known here; nothing was sent; ", said.out
    )
    assert list(sshd.home.iterdir()) == []


def test_a_changed_host_key_is_refused_and_the_others_go_on(
    run: Callable[..., Said], sshd: SshServer, tmp_path: Path
) -> None:
    other = new_key(tmp_path / "other", "another machine")
    known = Path(os.environ["HOME"]) / ".ssh/known_hosts"
    known.parent.mkdir()
    known.write_text(f"[127.0.0.1]:{sshd.port} {other}\n")
    words = {"program": "default", "systemd_scope": "user"}
    path = inventory(
        tmp_path,
        sshd.inventory_line("changed", **words),
        sshd.inventory_line("pinned", host_key=sshd.host_key, **words),
    )
    said = run("provision", path, "--check", "--accept-new")
    assert said.code == 5
    assert re.search(r"failed +changed +\S+: its host key has changed: .*ssh-keygen -R", said.out)
    assert re.search(r"would change +pinned ", said.out)


def pretend(sshd: SshServer, first: str) -> None:
    """Let the server's `python3` first run a line of its own: what it then says of itself is not true."""
    if Path(pwd.getpwuid(os.getuid()).pw_shell).name != "bash":
        pytest.skip("the login shell is not bash, which reads ~/.bashrc for a command over SSH")
    python = sshd.home / "bin/python3"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec /usr/bin/python3 -I -B -c {shlex.quote(first)}"\n$4"\n')
    python.chmod(0o755)
    (sshd.home / ".bashrc").write_text('PATH="$HOME/bin:$PATH"\n')


DEVICES = {
    "Python 3.5": (
        "import sys; sys.version_info = (3, 5, 3, 'final', 0)",
        "Python 3.5.3 is too old, 3.11 is needed; install Debian 12 or newer",
    ),
    "Python 3.9": (
        "import platform; platform.python_version = lambda: '3.9.2'",
        "Python 3.9.2 is too old",
    ),
    "32-bit": (
        "import ctypes.util, struct; old = struct.calcsize; struct.calcsize = lambda form: old(form.replace('P', 'i'))",
        "32-bit",
    ),
}


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_that_is_too_old_or_too_small(
    name: str, run: Callable[..., Said], sshd: SshServer, tmp_path: Path
) -> None:
    first, expected = DEVICES[name]
    pretend(sshd, first)
    line = sshd.inventory_line("lab", host_key=sshd.host_key, program="default", systemd_scope="user")
    said = run("provision", inventory(tmp_path, line))
    assert said.code == 2, said
    failed = [line for line in said.out.splitlines() if line.startswith("failed")]
    assert len(failed) == 1
    assert expected in failed[0]
    assert "; " in failed[0], "with what to do"
    assert not (sshd.home / ".local/share/acoupi").exists()


def test_a_login_shell_that_talks_does_no_harm(run: Callable[..., Said], sshd: SshServer, tmp_path: Path) -> None:
    (sshd.home / ".bashrc").write_text("echo Welcome to the lab\n")
    line = sshd.inventory_line("lab", host_key=sshd.host_key, systemd_scope="user")
    said = run("status", inventory(tmp_path, line))
    assert re.search(r"^lab +not provisioned +run acoupi-fleet provision$", said.out, re.MULTILINE)
    assert said.code == 2


# Whoever started the tests in the background may have made them deaf to it.
_HEARS_CTRL_C = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from acoupi_fleet.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("verb", ["provision", "status"])
def test_ctrl_c_ends_at_once_with_one_line_and_exit_code_130(
    verb: str, listening: Callable[..., Silent], tmp_path: Path
) -> None:
    other = listening()
    path = inventory(tmp_path, f"lab host=127.0.0.1 port={other.port} program=default")
    process = subprocess.Popen(
        [sys.executable, "-c", _HEARS_CTRL_C, verb, path, "--timeout", "600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: other.held, 120, "the connection")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert re.fullmatch(r"interrupted: [^\n]+\n", err)


# --- what only a whole machine can be wrong about ---


class Machine:
    """A real sensor, and the inventory line that names it."""

    def __init__(self, sensor: Sensor, fleet: Fleet, folder: Path) -> None:
        self.sensor = sensor
        self._fleet = fleet
        self._folder = folder

    def __call__(self, verb: str, *words: str, **variables: object) -> Said:
        settings = {"program": "default", "program.recording.schedule_end": "06:00"} | SOUND | variables
        line = self.sensor.inventory_line(**settings)
        done = self._fleet(verb, inventory(self._folder, line), *words)
        assert "Traceback" not in done.stdout + done.stderr
        return Said(done.returncode, done.stdout, done.stderr)


SOUND = {
    "program.microphone.device_name": "ultramic",
    "program.recording.duration": 1,
    "program.recording.interval": 2,
}


@pytest.fixture(scope="module")
def bare(make_sensor: MakeSensor, fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine with nothing on it, on which nothing ever succeeds: each test leaves it as it was."""
    return Machine(make_sensor("bare"), fleet, tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def guest(bare: Machine) -> str:
    """A user of it who may log in, and become root only with the password `open sesame`."""
    bare.sensor.ssh(
        "sudo useradd --create-home --shell /bin/sh guest && echo 'guest:open sesame' | sudo chpasswd && "
        "sudo cp -r /home/pi/.ssh /home/guest/ && sudo chown -R guest /home/guest/.ssh && "
        "echo 'guest ALL=(ALL) ALL' | sudo tee /etc/sudoers.d/guest"
    )
    return "guest"


def failed(machine: Machine, said: Said, expected: str) -> None:
    """It failed, in one line that says why, and nothing of ours is there."""
    assert said.code == 2, said
    lines = [line for line in said.out.splitlines() if line.startswith("failed")]
    assert len(lines) == 1, said.out
    assert expected in lines[0], said.out
    assert "; " in lines[0], "with what to do"
    assert machine.sensor.run("test -e /opt/acoupi/current", check=False).returncode == 1


@pytest.mark.sensor
@pytest.mark.parametrize(
    ("password", "expected"),
    [
        ({}, "sudo does not let us: a password is required; set sudo_password, allow it without a password, or use"),
        ({"sudo_password": "sesame"}, "sudo does not accept the password; correct sudo_password"),
    ],
    ids=["none given", "a wrong one"],
)
def test_sudo_with_a_password(bare: Machine, guest: str, password: dict[str, str], expected: str) -> None:
    failed(bare, bare("provision", user=guest, **password), expected)


@pytest.mark.sensor
def test_the_right_password_opens_and_is_never_seen(bare: Machine, guest: str) -> None:
    said = bare("provision", "--check", "-v", user=guest, sudo_password="open sesame")
    assert said.code == 3, said
    assert "sesame" not in said.out + said.err
    assert "sesame" not in bare.sensor.journal(lines=2000)


@pytest.mark.sensor
def test_a_user_who_may_not_become_root(bare: Machine) -> None:
    bare.sensor.ssh("sudo mv /usr/bin/sudo /usr/bin/sudo.away")
    try:
        failed(bare, bare("provision"), "there is no sudo; install it there, log in as root, or use systemd_scope=user")
    finally:
        (bare.sensor.root / "usr/bin/sudo.away").rename(bare.sensor.root / "usr/bin/sudo")


@pytest.mark.sensor
def test_a_unit_name_that_somebody_else_has_taken(bare: Machine) -> None:
    unit = bare.sensor.root / "etc/systemd/system/acoupi.target"
    unit.write_text("[Unit]\nDescription=mine\n")
    try:
        said = bare("provision")
        failed(
            bare, said, f"the unit acoupi.target is somebody else's: /etc/systemd/system/{unit.name}; remove or rename"
        )
        assert unit.read_text() == "[Unit]\nDescription=mine\n"
    finally:
        unit.unlink()


@pytest.mark.sensor
def test_packages_that_are_missing_and_cannot_be_installed(bare: Machine) -> None:
    bare.sensor.ssh("sudo mv /srv/debian /srv/away")
    try:
        said = bare("provision")
        failed(bare, said, "missing packages: libportaudio2 redis-server; apt cannot install them here")
        for way_out in ("connect the sensor to the internet", "set a proxy or mirror", "`apt-get download`"):
            assert way_out in said.out
    finally:
        bare.sensor.ssh("sudo mv /srv/away /srv/debian")


@pytest.mark.sensor
def test_no_space_for_a_release(bare: Machine) -> None:
    bare.sensor.ssh("sudo mkdir -p /opt/acoupi && sudo mount -t tmpfs -o size=1m none /opt/acoupi")
    try:
        failed(bare, bare("provision"), "no space below /opt/acoupi: ")
        assert bare.sensor.ssh("ls -A /opt/acoupi") in {"", "lock"}
    finally:
        bare.sensor.ssh("sudo umount /opt/acoupi")


@pytest.mark.sensor
def test_a_sensor_without_a_microphone_is_provisioned_and_reported(
    make_sensor: MakeSensor, fleet: Fleet, tmp_path: Path
) -> None:
    machine = Machine(make_sensor(), fleet, tmp_path)
    with wave.open(str(tmp_path / "noise.wav"), "wb") as noise:
        noise.setparams((1, 2, 48_000, 0, "NONE", ""))
        noise.writeframes(random.Random(1).randbytes(96_000))
    machine.sensor.play(tmp_path / "noise.wav")
    machine.sensor.unplug_microphone()
    said = machine("provision")
    assert said.code == 0, said
    warned = r"^warning +sensor\d+ +no microphone: .*'ultramic'.*; the sensor records as soon as it is there$"
    assert re.search(warned, said.out, re.MULTILINE), said.out
    assert re.search(r"^sensor\d+ +no microphone +\S+ +none ", machine("status").out, re.MULTILINE)
    strict = machine("check", "--require-sound")
    assert strict.code == 2, strict
    assert re.search(r"^failed +sensor\d+ +no microphone", strict.out, re.MULTILINE)
    machine.sensor.plug_microphone()
    wait_until(lambda: machine("status").code == 0 and " dBFS " in machine("status").out, 120, "a recording with sound")
    assert machine("check").code == 0

    program = "/opt/acoupi/current/home/config/program.json"
    machine.sensor.ssh(f'sudo sed -i \'s/"duration": 1.0/"duration": 1.5/\' {program}')
    drifted = machine("check", "--diff")
    assert drifted.code == 3, drifted
    assert '\n-    "duration": 1.5,\n+    "duration": 1.0,\n' in drifted.out
    assert '"duration": 1.5' in machine.sensor.ssh(f"sudo cat {program}"), "check changes nothing"
