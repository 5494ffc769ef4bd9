"""release: a complete, checked folder that is switched to in one step. Touches PREFIX/releases and links into it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from acoupi_fleet.device import files, system
from acoupi_fleet.device.layout import TARGET, Layout, Refusal

if TYPE_CHECKING:
    from acoupi_fleet.device.call import Call

WORLD_READS = 0o004


def push(call: Call, layout: Layout, step: dict[str, Any]) -> None:
    """Make a release beside the others: files that this device already has are copied, the rest comes over the wire."""
    layout.releases.mkdir(parents=True, exist_ok=True)
    root = layout.releases / step["name"]
    fresh = layout.releases / (step["name"] + ".tmp")
    files.remove(fresh)
    try:
        fresh.mkdir()
        lay_out(call, layout, fresh, step["files"])
        (fresh / "env").symlink_to(step["env"])
        derived = compiled(layout, fresh, root)
        wrong = system.verify(layout, sorted((fresh / "units").glob("*")))
        if wrong:
            raise Refusal(f"systemd does not accept a unit: {wrong[0]}")
        about = {
            "id": step["id"],
            "serial": step["serial"],
            "env": step["env"],
            "runs": step["runs"],
            "derived": derived,
        }
        files.write_new(fresh / "manifest.json", json.dumps(about).encode(), 0o644)
        files.sync_tree(fresh)
        fresh.rename(root)
        files.sync_dir(layout.releases)
    finally:
        files.remove(fresh)


def lay_out(call: Call, layout: Layout, fresh: Path, wanted: list[dict[str, Any]]) -> None:
    """Write every file with its mode and owner from its first byte on."""
    ids = layout.ids()
    have = {}
    if layout.current.exists():
        now = layout.current.resolve()
        have = {files.digest(path): path for path in files.walk(now) if "__pycache__" not in path.parts}
    for entry in wanted:
        place = PurePosixPath(entry["path"])
        if place.is_absolute() or ".." in place.parts:
            raise Refusal("a file outside its release: {}".format(entry["path"]))
        content = call.take(entry["size"]) if entry["sent"] else have[entry["sha256"]].read_bytes()
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise Refusal("{} was damaged on the way; run again".format(entry["path"]))
        path = fresh / place
        path.parent.mkdir(parents=True, exist_ok=True)
        secret = layout.system and ids is not None and not entry["mode"] & WORLD_READS
        files.write_new(path, content, entry["mode"], (0, ids[1]) if secret and ids is not None else None)


def compiled(layout: Layout, fresh: Path, final: Path) -> dict[str, str]:
    """Compile our own code, try to import it as the service user, and say what was derived from it."""
    python = str(fresh / "env/bin/python")
    lib = fresh / "lib"
    words = [
        "-m",
        "compileall",
        "-q",
        "--invalidation-mode",
        "unchecked-hash",
        "-s",
        str(fresh),
        "-p",
        str(final),
        str(lib),
    ]
    system.must(system.run([python, *words], dict(layout.control_env(), PYTHONPATH=""), 300.0), "compiling the release")
    tried = system.run_as_service(
        layout, [python, "-B", "-c", "import sys; sys.path.insert(0, sys.argv[1]); import acoupi_runtime.cli", str(lib)]
    )
    system.must(tried, "the release does not work with this environment: import acoupi_runtime")
    return {
        str(path.relative_to(fresh)): files.digest(path)
        for path in files.walk(lib)
        if path.parent.name == "__pycache__"
    }


def switch(layout: Layout, name: str) -> None:
    """Put a release in force."""
    files.link(layout.current, "releases/" + name)


def link_units(layout: Layout, names: list[str]) -> None:
    """Let exactly these units of the release in force be known to systemd, and start the target at boot."""
    ours = str(layout.current / "units")
    layout.wants_dir.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = layout.unit_dir / name
        target = files.points_to(path)
        if target != f"{ours}/{name}":
            if target is None and path.exists():
                raise Refusal(f"{path} is somebody else's file; move it away, then run again")
            files.link(path, f"{ours}/{name}")
    for path in layout.unit_dir.iterdir():
        target = files.points_to(path)
        if target is not None and target.rpartition("/")[0] == ours and path.name not in names:
            path.unlink()
    if TARGET in names and files.points_to(layout.wants_dir / TARGET) != "../" + TARGET:
        files.link(layout.wants_dir / TARGET, "../" + TARGET)
    files.sync_dir(layout.unit_dir)


def go_back(layout: Layout, name: str, strangers: list[str]) -> None:
    """Put an earlier release in force, with exactly its units; end those that it does not know."""
    if strangers:  # nothing else would: systemd would start them again and again, from files that are gone
        system.systemctl(layout, "stop", *strangers, timeout=120.0)
    switch(layout, name)
    link_units(layout, sorted(path.name for path in (layout.releases / name / "units").iterdir()))
    system.systemctl(layout, "daemon-reload")
    system.systemctl(layout, "restart", TARGET, timeout=180.0)


def prune(layout: Layout, releases: list[str], envs: list[str]) -> None:
    """Remove what nothing needs any more."""
    for folder, names in ((layout.releases, releases), (layout.envs, envs)):
        for name in names:
            files.remove(folder / name)
