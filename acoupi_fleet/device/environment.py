"""environment: third-party packages from wheels that were sent, without index or python3-venv. Touches PREFIX/env.

It is made where it will stay, since scripts and caches carry absolute paths; `manifest.json`, written last, says that
it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

from acoupi_fleet.device import files, system
from acoupi_fleet.device.layout import Layout, Refusal

if TYPE_CHECKING:
    from pathlib import Path

    from acoupi_fleet.device.call import Call

MANIFEST = "manifest.json"


def build(call: Call, layout: Layout, step: dict[str, Any]) -> None:
    """Receive the wheels, install them, try them, and only then call it an environment."""
    layout.envs.mkdir(parents=True, exist_ok=True)
    root = layout.envs / step["key"]
    wheels = layout.envs / (step["key"] + ".tmp")
    files.remove(root)
    files.remove(wheels)
    try:
        wheels.mkdir(0o700)
        receive(call, wheels, step["wheels"])
        call.say("progress", text=f"installing {len(step['wheels']) - 1} wheels")
        install(layout, root, wheels, step["requirements"])
        try_out(layout, root, wheels, step["imports"])
        os.sync()
        about = {"key": step["key"], "outline": files.outline(root, MANIFEST)}
        files.replace(root / MANIFEST, json.dumps(about).encode(), 0o644)
        files.sync_dir(layout.envs)
    except BaseException:
        files.remove(root)
        raise
    finally:
        shutil.rmtree(str(wheels), ignore_errors=True)


def receive(call: Call, folder: Path, wheels: list[dict[str, Any]]) -> None:
    """Take each wheel from the wire; one that is not what was announced is refused."""
    total = sum(wheel["size"] for wheel in wheels)
    done = 0
    for wheel in wheels:
        if "/" in wheel["name"]:
            raise Refusal("a wheel with a path in its name: {}".format(wheel["name"]))
        digest = hashlib.sha256()
        with (folder / wheel["name"]).open("xb") as stream:
            left = wheel["size"]
            while left:
                piece = call.take(min(left, 1 << 18))
                digest.update(piece)
                stream.write(piece)
                left -= len(piece)
        done += wheel["size"]
        if digest.hexdigest() != wheel["sha256"]:
            raise Refusal("{} was damaged on the way; run again".format(wheel["name"]))
        call.say("progress", text="received {}".format(wheel["name"]), percent=100.0 * done / total)


def install(layout: Layout, root: Path, wheels: Path, requirements: str) -> None:
    """Make the environment and compile it: without .pyc files a start takes three times as long."""
    env = clean(layout, wheels)
    made = system.run([sys.executable, "-m", "venv", "--without-pip", str(root)], env, 120.0)
    if made.code != 0:
        raise Refusal(f"Python cannot make an environment here ({made.reason}); apt-get install python3-venv")
    wanted = wheels / "requirements.txt"
    wanted.write_text(requirements, encoding="utf-8")
    system.must(
        pip(
            *(
                layout,
                root,
                wheels,
                "install",
                "--no-index",
                "--find-links",
                str(wheels),
                "--require-hashes",
                "--no-deps",
            ),
            *("--no-compile", "--no-cache-dir", "--requirement", str(wanted)),
        ),
        "installing the wheels",
    )
    # Not every package's every file compiles (templates), so the answer does not matter; times do not either, the
    # clock may be wrong.
    compiler = [
        str(root / "bin/python"),
        "-m",
        "compileall",
        "-q",
        "-j",
        "0",
        "--invalidation-mode",
        "unchecked-hash",
        str(root / "lib"),
    ]
    system.run(compiler, env, 900.0)


def try_out(layout: Layout, root: Path, wheels: Path, imports: list[str]) -> None:
    """Let the device's own interpreter say whether anything is missing, before anything depends on it."""
    system.must(pip(layout, root, wheels, "check"), "the new environment is not complete: pip check")
    words = [str(root / "bin/python"), "-I", "-B", "-c", "import " + ", ".join(imports)]
    system.must(system.run(words, clean(layout, wheels), 180.0), "the new environment does not work: import")


def pip(layout: Layout, root: Path, wheels: Path, *words: str) -> system.Answer:
    """Run the pip that came as a wheel, with the new environment's interpreter."""
    (itself,) = wheels.glob("pip-*.whl")
    argv = [str(root / "bin/python"), "-I", "-B", str(itself / "pip"), "--disable-pip-version-check", "--quiet", *words]
    return system.run(argv, clean(layout, wheels), 900.0)


def clean(layout: Layout, wheels: Path) -> dict[str, str]:
    """An environment in which nobody's settings for Python or pip count, and temporary files stay on this card."""
    env = {name: value for name, value in layout.control_env().items() if not name.startswith(("PYTHON", "PIP_"))}
    env.update(PIP_CONFIG_FILE=os.devnull, TMPDIR=str(wheels))
    return env


def try_runtime(layout: Layout, path: str, imports: list[str]) -> None:
    """Check an environment that somebody else made."""
    words = [
        path + "/bin/python",
        "-B",
        "-c",
        "import sys; assert sys.version_info >= (3, 11), sys.version; import " + ", ".join(imports),
    ]
    said = system.run(words, dict(layout.control_env(), PYTHONPATH=""), 180.0)
    if said.code != 0:
        raise Refusal(
            f"runtime={path} cannot be used: {said.reason}; install acoupi-fleet[runtime] into it, or leave "
            "`runtime` out"
        )
