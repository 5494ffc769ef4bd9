"""Sensors for people: `python -m tests.sensors up 2`, look around with `ssh`, `env` and `inventory`, and `down`.

They stay until `down` or a reboot of this machine. `down` also removes what killed test runs left behind.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.sensors import machine
from tests.sensors.image import open_image
from tests.sensors.rig import LOCK, RIGS, Rig, sweep
from tests.sensors.sensor import Sensor


def main() -> int:
    """Do what the words say and return the exit code."""
    words = parser().parse_args()
    if (reason := machine.why_not()) is not None:
        print(reason, file=sys.stderr)
        return 1
    if words.verb == "build":
        _, held = open_image()
        os.close(held)
        return 0
    if words.verb == "down":
        return down(words.rig)
    rig = Rig.named(words.rig)
    return on_rig(rig, words) if words.verb in {"up", "inventory", "env"} else on_sensor(rig.sensors(), words)


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    top = argparse.ArgumentParser(prog="python -m tests.sensors", description=__doc__)
    top.add_argument(
        "--rig", default="people", metavar="NAME", help="rigs of different names know nothing of each other"
    )
    verbs = top.add_subparsers(dest="verb", required=True)
    verbs.add_parser("build", help="build the image, if it is not there")
    up = verbs.add_parser("up", help="let sensors 1 to N run, and print them as an inventory")
    up.add_argument("count", type=int, metavar="N")
    up.add_argument("--image", choices=("full", "bare"), default="full", help="bare: no Redis, PortAudio and venv")
    up.add_argument("--memory", metavar="512M", help="RAM of each new sensor")
    verbs.add_parser("down", help="remove all of it, and what killed test runs left behind")
    verbs.add_parser("inventory", help="print the sensors as an inventory")
    env = verbs.add_parser("env", help="run a command where the sensors can be reached")
    env.add_argument("command", nargs=argparse.REMAINDER)
    for verb, text in (
        ("ssh", "a shell, or a command, on a sensor"),
        ("play", "let its microphone hear a wav in a loop"),
        ("offline", "pull its cable"),
        ("online", "plug its cable in"),
        ("crash", "cut its power"),
        ("boot", "switch it on"),
        ("reboot", "reboot it"),
        ("journal", "print the end of its journal"),
    ):
        one = verbs.add_parser(verb, help=text)
        one.add_argument("number", type=int, metavar="N")
        if verb == "ssh":
            one.add_argument("command", nargs=argparse.REMAINDER)
        if verb == "play":
            one.add_argument("sound", type=Path, metavar="FILE.wav")
    return top


def down(name: str) -> int:
    """Remove a rig and the left-overs of others."""
    with machine.locked(LOCK):
        sweep()
        if (RIGS / name).exists():
            Rig(name).remove()
    return 0


def on_rig(rig: Rig, words: argparse.Namespace) -> int:
    """Do what concerns all sensors."""
    if words.verb == "env":
        environment = os.environ | {"HOME": str(rig.home)}
        return subprocess.run(rig.network.command(*words.command), env=environment, check=False).returncode
    if words.verb == "up":
        for sensor in rig.sensors():
            sensor.boot()
        rig.add(max(0, words.count - len(rig.sensors())), words.image, words.memory)
    print("\n".join(sensor.inventory_line() for sensor in rig.sensors()))
    return 0


def on_sensor(sensors: list[Sensor], words: argparse.Namespace) -> int:
    """Do what concerns one sensor."""
    found = [sensor for sensor in sensors if sensor.number == words.number]
    if not found:
        print(f"there is no sensor {words.number}: up {words.number}", file=sys.stderr)
        return 1
    sensor = found[0]
    match words.verb:
        case "ssh":
            return subprocess.run(sensor.ssh_command(*words.command), check=False).returncode
        case "play":
            sensor.play(words.sound)
        case "journal":
            print(sensor.journal())
        case verb:
            getattr(sensor, verb)()
    return 0


if __name__ == "__main__":
    sys.exit(main())
