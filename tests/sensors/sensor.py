"""One sensor: a booted Debian with sshd and a microphone, and what can happen to it (power cut, cable out, ...)."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.sensors import machine
from tests.support import new_key, wait_until

ImageName = Literal["full", "bare"]
HERE = Path(__file__).parent
PATIENCE = 240  # for what takes seconds on an idle machine


@dataclass(frozen=True)
class Network:
    """What the sensors of one rig share: the workstation's network namespace and its login key."""

    rig: str
    workstation: str
    identity: Path
    known_hosts: Path

    def command(self, *words: str | Path) -> list[str | Path]:
        """Return a command that runs in the workstation's network."""
        return ["nsenter", f"--net=/run/netns/{self.workstation}", "--", *words]


@dataclass(frozen=True)
class Sensor:
    """One sensor of a rig. Its folder holds its disk (over the image), its console's log and what it was made of."""

    number: int
    folder: Path
    network: Network

    # --- names ---

    @property
    def name(self) -> str:
        """Its host name, also in inventories."""
        return f"sensor{self.number}"

    @property
    def address(self) -> str:
        """Its address in the rig's own network; there is a way to it only from the workstation's namespace."""
        return f"10.77.0.{10 + self.number}"

    @property
    def _hardware_address(self) -> str:
        """The same for every sensor at this address: the workstation would ask in vain for the one before."""
        return f"02:00:0a:4d:00:{10 + self.number:02x}"

    @property
    def root(self) -> Path:
        """Its disk, as seen from here, whether it is on or off; without what it keeps in memory (/run, /tmp)."""
        return self.folder / "root"

    @property
    def host_key(self) -> str:
        """Its public host key: `ssh-ed25519 AAAA...`."""
        return " ".join((self.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2])

    @property
    def _unique(self) -> str:
        return f"{self.network.rig}-{self.number}"

    @property
    def _namespace(self) -> str:
        return f"acoupi-{self._unique}"

    def inventory_line(self, **variables: object) -> str:
        """Return it as a line of an inventory, with more variables if wanted (`program__x=1` is said `program.x=1`)."""
        words = {"host": self.address, "user": "pi", "identity": self.network.identity} | {
            key.replace("__", "."): value for key, value in variables.items()
        }
        return " ".join([self.name, *(f"{key}={shlex.quote(str(value))}" for key, value in words.items())])

    # --- making and removing ---

    def make(self, image: Path, layers: ImageName, memory: str | None) -> None:
        """Give it a disk, an identity and a cable. Does not start it."""
        self.folder.mkdir(parents=True)
        (self.folder / "made.json").write_text(json.dumps({"image": str(image), "layers": layers, "memory": memory}))
        for name in ("disk", "work", "root"):
            (self.folder / name).mkdir()
        (self.folder / "disk").chmod(0o755)  # the mode of the sensor's `/`
        self._mount()
        ssh = self.root / "etc/ssh"
        new_key(ssh / "ssh_host_ed25519_key", f"root@{self.name}")
        machine.write(self.root / "etc/hostname", f"{self.name}\n")
        machine.write(self.root / "etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")
        authorized = self.root / "home/pi/.ssh/authorized_keys"
        authorized.write_text(self.network.identity.with_name(f"{self.network.identity.name}.pub").read_text())
        authorized.chmod(0o600)
        os.chown(authorized, 1000, 1000)
        with self.network.known_hosts.open("a") as known:
            known.write(f"{self.address} {self.host_key}\n")
        self._connect()

    def _mount(self) -> None:
        if self.root.is_mount():
            return
        made = json.loads((self.folder / "made.json").read_text())
        lower = (
            [f"{made['image']}/base"]
            if made["layers"] == "bare"
            else [f"{made['image']}/full", f"{made['image']}/base"]
        )
        options = f"lowerdir={':'.join(lower)},upperdir={self.folder}/disk,workdir={self.folder}/work"
        machine.run(["mount", "-t", "overlay", f"acoupi-{self._unique}", "-o", options, self.root])

    def _connect(self) -> None:
        if self._namespace in machine.namespaces():
            return
        inside, outside = ["ip", "-n", self._namespace], ["ip", "-n", self.network.workstation]
        machine.run(["ip", "netns", "add", self._namespace])
        machine.run(
            [
                *("ip", "link", "add", self.name, "netns", self.network.workstation),
                *("type", "veth", "peer", "name", "eth0", "address", self._hardware_address, "netns", self._namespace),
            ]
        )
        machine.run([*outside, "link", "set", self.name, "master", "lan", "up"])
        machine.run([*inside, "addr", "add", f"{self.address}/24", "dev", "eth0"])
        machine.run([*inside, "link", "set", "lo", "up"])
        machine.run([*inside, "link", "set", "eth0", "up"])  # no default route: nothing leaves the rig

    def remove(self) -> None:
        """Switch it off and delete it; nothing of it is left on this machine."""
        machine.kill(self._unique)
        machine.unmount(self.root)
        if self._namespace in machine.namespaces():
            machine.run(["ip", "netns", "del", self._namespace])
        machine.remove_cgroups(self._unique)
        self._forget_container()
        known = self.network.known_hosts  # the next sensor at this address is another one, with another key
        if known.exists():
            lines = known.read_text().splitlines(keepends=True)
            known.write_text("".join(line for line in lines if line.split()[:1] != [self.address]))
        shutil.rmtree(self.folder)

    def _forget_container(self) -> None:
        """Remove what systemd-nspawn leaves behind when it is killed; newer ones refuse to start on top of it."""
        for place in ("propagate", "unix-export"):
            left = Path("/run/systemd/nspawn") / place / self._unique
            machine.unmount(left)
            shutil.rmtree(left, ignore_errors=True)

    # --- power ---

    @property
    def is_on(self) -> bool:
        """Whether anything runs in it."""
        return bool(machine.processes(self._unique))

    def start(self) -> None:
        """Switch it on; does not wait until it has booted."""
        if self.is_on:
            return
        self._mount()
        self._connect()
        groups = machine.make_cgroups(self._unique, json.loads((self.folder / "made.json").read_text())["memory"])
        self._forget_container()
        pid = self.folder / "container.pid"
        pid.unlink(missing_ok=True)
        container = [
            *("systemd-nspawn", "--quiet", f"--directory={self.root}", f"--machine={self._unique}", "--register=no"),
            *("--keep-unit", "--link-journal=no", "--resolv-conf=off", "--timezone=off"),
            *(f"--network-namespace-path=/run/netns/{self._namespace}", "--boot"),
        ]
        with (self.folder / "console.log").open("ab") as console:
            subprocess.run(  # the power supply outlives us; the rig's cgroups are how it is found again
                ["setsid", "--fork", HERE / "power.sh", self.folder, *groups, "--", *container],
                env=os.environ | {"LC_ALL": "C", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                check=True,
                timeout=60,
            )
        wait_until(pid.exists, 60, f"{self.name} to be switched on; its console says: {self.console()}")

    def wait_until_ready(self) -> str:
        """Wait until systemd has booted it, and return systemd's word: `running` or `degraded`."""

        def state() -> str | None:
            if not self.is_on:
                raise AssertionError(f"{self.name} did not boot:\n{self.console()}")
            words = self._answer("systemctl is-system-running --wait")
            return words if words in {"running", "degraded"} else None

        return wait_until(state, PATIENCE, f"{self.name} to boot") or ""

    def crash(self) -> None:
        """Cut its power: every process ends at once. What was written stays written: the page cache is not lost."""
        leader = machine.first_process(int((self.folder / "container.pid").read_text()))
        if leader is not None:
            os.kill(leader, 9)
            wait_until(
                lambda: not self.is_on or machine.first_process(leader) is None, 60, f"{self.name} to lose power"
            )
        machine.kill(self._unique)

    def boot(self) -> None:
        """Switch it on and wait until it has booted."""
        self.start()
        self.wait_until_ready()

    def reboot(self) -> None:
        """Let it reboot as a person would, and wait until the new system has booted."""
        before = self.boot_id()
        self._answer("sudo systemctl reboot")  # the connection may be cut before the command says it was done
        wait_until(lambda: self.boot_id() not in {"", before}, PATIENCE, f"{self.name} to boot again")
        self.wait_until_ready()

    def boot_id(self) -> str:
        """Return the running system's identity, or nothing while it does not answer."""
        return self._answer("cat /proc/sys/kernel/random/boot_id")

    def _answer(self, command: str) -> str:
        """Return what a command printed, or nothing where it failed or nobody answered."""
        try:
            done = self.run(command, check=False, timeout=60)
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout.strip() if done.returncode in {0, 1} else ""  # 1: it ran, `degraded`

    # --- cable ---

    def offline(self) -> None:
        """Pull its network cable: packets are lost in silence."""
        machine.run(["ip", "-n", self.network.workstation, "link", "set", self.name, "down"])

    def online(self) -> None:
        """Plug its network cable in."""
        machine.run(["ip", "-n", self.network.workstation, "link", "set", self.name, "up"])

    # --- inside ---

    def ssh_command(self, *words: str) -> list[str | Path]:
        """Return the command of OpenSSH's own client that logs in as the user pi, who has sudo."""
        options = [f"-oUserKnownHostsFile={self.network.known_hosts}", "-oStrictHostKeyChecking=yes", "-oBatchMode=yes"]
        options += [
            "-oIdentitiesOnly=yes",
            "-oLogLevel=ERROR",
            "-oConnectTimeout=10",
            "-oServerAliveInterval=15",
            f"-i{self.network.identity}",
        ]
        return self.network.command("ssh", "-F", "none", *options, f"pi@{self.address}", *words)

    def run(
        self, command: str, *, check: bool = True, stdin: str = "", timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command in it as the user pi (who has sudo), over OpenSSH's own client."""
        done = subprocess.run(
            self.ssh_command(command),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{self.name}: {command}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def ssh(self, command: str, *, timeout: float = 120) -> str:
        """Run a shell command in it as the user pi and return what it printed; it must succeed."""
        return self.run(command, timeout=timeout).stdout.strip()

    def journal(self, *, lines: int = 200, unit: str | None = None) -> str:
        """Return the end of its journal, read from here, so also of a sensor that is off."""
        command = ["journalctl", f"--directory={self.root}/var/log/journal", "--no-pager", f"--lines={lines}"]
        command += [f"--unit={unit}"] if unit else []
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout

    def console(self) -> str:
        """Return the end of what its console printed."""
        log = self.folder / "console.log"
        return log.read_text(errors="replace")[-4000:] if log.exists() else ""

    # --- microphone ---

    def play(self, sound: Path) -> None:
        """Let its microphones hear this wav (mono, 16 bit, 8 to 384 kHz) in a loop.

        The microphone `ultramic` has the wav's rate and no other. If it had another rate before, it is unplugged and
        plugged in again; else only the sound changes, after a moment of silence.
        """
        with wave.open(str(sound)) as wav:
            if (wav.getnchannels(), wav.getsampwidth()) != (1, 2):
                raise ValueError(f"{sound}: the microphone has one channel of 16 bit")
            rate, frames = wav.getframerate(), wav.readframes(wav.getnframes())
        for name, content in (("sound.wav", sound.read_bytes()), ("sound.raw", frames)):
            place = self.root / "var/lib/sensor" / name
            place.write_bytes(content)
            place.chmod(0o644)
        settings = self.root / "etc/sensor/microphone.env"
        wanted = f"RATE={rate}\n"
        units = "sound" if settings.read_text() == wanted else "microphone sound"
        machine.write(settings, wanted)
        if self.is_on:
            self.ssh(f"sudo systemctl restart {units}")

    def unplug_microphone(self) -> None:
        """Take `ultramic` away; a stream that is open breaks."""
        self.ssh("sudo systemctl stop sound microphone")

    def plug_microphone(self) -> None:
        """Give `ultramic` back, and the sound that it heard."""
        self.ssh("sudo systemctl start microphone sound")
