"""packages: what is missing comes from this device's own apt. Touches the system's packages, as root."""

from __future__ import annotations

import os
import subprocess
import tempfile
from typing import TYPE_CHECKING

from acoupi_fleet.device import system
from acoupi_fleet.device.layout import Layout, Refusal

if TYPE_CHECKING:
    from acoupi_fleet.device.call import Call

APT = [
    *("apt-get", "--yes", "--no-install-recommends", "--option", "DPkg::Lock::Timeout=300"),
    *(
        "--option",
        "Dpkg::Options::=--force-confold",
        "--option",
        "Acquire::http::Timeout=20",
        "--option",
        "Acquire::Retries=1",
    ),
]
BROKER = "redis-server"


def install(call: Call, layout: Layout, names: list[str], proxy: str | None) -> None:
    """Install packages; Debian's own Redis, brought by us, neither starts now nor at the next boot.

    `proxy` is where the workstation lends its connection, for these calls of apt only: nothing of it is written down.
    """
    quiet = BROKER in names
    if quiet:
        # A mask in /run is gone after a reboot whatever happens to us, and keeps the package from starting its service.
        system.must(system.systemctl(layout, "mask", "--runtime", BROKER + ".service"), "systemctl mask")
    reason = ""
    try:
        said = apt(call, ["install", *names], proxy)
        if said.code != 0:
            call.say("progress", text="apt: reading the lists of packages")
            reason = apt(
                call, ["update"], proxy
            ).err  # without lists, `install` only says that it knows no such package
            said = apt(call, ["install", *names], proxy)
    finally:
        if quiet:
            system.systemctl(layout, "unmask", "--runtime", BROKER + ".service")
    if said.code != 0:
        words = " ".join(names)
        reason = ": ".join(filter(None, (said.reason, reason)))
        connect = (
            "let this computer reach what apt names, or connect the sensor to the internet and write apt_via=device"
            if proxy
            else "connect the sensor to the internet and run again (or set a proxy or mirror in /etc/apt there), or "
            "write apt_via=workstation to let its apt use this computer's connection"
        )
        raise Refusal(
            f"missing packages: {words}; apt cannot install them here ({reason}); {connect}, or carry them there: "
            "`apt-get download` them and what they need elsewhere and `sudo apt-get install ./*.deb` on the sensor"
        )
    if quiet:
        system.must(system.systemctl(layout, "disable", "--now", BROKER + ".service"), "systemctl disable")


def apt(call: Call, words: list[str], proxy: str | None) -> system.Answer:
    """One call of apt-get whose progress is told as it happens."""
    way = [f"--option=Acquire::{scheme}::Proxy={proxy}" for scheme in ("http", "https")] if proxy else []
    reading, writing = os.pipe()
    env = dict(
        os.environ,
        DEBIAN_FRONTEND="noninteractive",
        LC_ALL="C",
        APT_LISTCHANGES_FRONTEND="none",
        NEEDRESTART_SUSPEND="1",
    )
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [*APT, *way, "--option", f"APT::Status-Fd={writing}", *words],
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            pass_fds=(writing,),
        )
        os.close(writing)
        last = ""
        with os.fdopen(reading, encoding="utf-8", errors="replace") as status:
            for line in status:
                _, _, rest = line.partition(":")
                _, _, rest = rest.partition(":")
                percent, _, text = rest.strip().partition(":")
                if text and text != last:
                    last = text
                    call.say("progress", text="apt: " + text, percent=float(percent or 0))
        code = process.wait()
        said.seek(0)
        lines = said.read().decode("utf-8", "replace").splitlines()
    errors = [line[3:] for line in lines if line.startswith(("E: ", "W: Failed to fetch "))]
    return system.Answer(code, "\n".join(lines), "\n".join(errors[:1]))
