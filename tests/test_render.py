"""Desired is a pure function of the inventory, and what is written for a person shows no secret."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from acoupi_fleet.cli import main
from acoupi_fleet.configuration import configure_all
from acoupi_fleet.desired import Desired, File
from acoupi_fleet.errors import ConfigurationError, UsageError
from acoupi_fleet.inventory import load_inventory
from acoupi_fleet.render import masked, render, write
from acoupi_fleet.wheelhouse import Target, resolve

SECRET = "s3cr3t-canary"
INVENTORY = f"""
[sensors]
oak host=10.0.0.1 deployment.name="Oak; $(reboot)"
reed host=10.0.0.2 systemd_scope=user isolation=shared

[sensors:vars]
program = connected
program.messaging.http.base_url = https://example.org
program.messaging.http.token = {SECRET}
"""
OWN = "oak host=10.0.0.1 program={module}:Mine program_package={package}"
PROGRAM = "from acoupi_runtime.programs.default import Program\nclass Mine(Program):\n    pass\n"


def desired(folder: Path, text: str = INVENTORY, *, templates: tuple[Path, ...] = ()) -> dict[str, Desired]:
    inventory = folder / "sensors.ini"
    inventory.write_text(text)
    hosts = load_inventory(inventory).hosts
    configurations = configure_all(hosts)
    return {host.name: render(host, configurations[host.name], templates=templates) for host in hosts}


def contents(wanted: Desired) -> dict[str, bytes]:
    return {file.path: file.content for file in wanted.files}


def test_a_release_holds_our_code_the_home_and_the_units_sorted_by_path(tmp_path: Path) -> None:
    oak = desired(tmp_path)["oak"]
    paths = [file.path for file in oak.files]
    assert paths == sorted(set(paths))
    assert {path.split("/")[0] for path in paths} == {"lib", "home", "units"}
    assert "lib/acoupi_runtime/__main__.py" in paths
    assert "home/config/managed" in paths
    assert "units/acoupi.target" in paths
    code = [path for path in paths if path.startswith("lib/")]
    assert all(path.startswith("lib/acoupi_runtime/") and path.endswith(".py") for path in code)
    assert oak.workers == ("recording", "processing")
    assert (oak.scope, oak.runtime) == ("system", None)
    assert set(oak.packages) == {"redis-server", "libportaudio2"}
    markers = {"python_full_version": "3.11.2", "python_version": "3.11", "sys_platform": "linux"}
    markers |= {
        "platform_machine": "aarch64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    assert {"celery", "numpy", "sounddevice"} <= {
        pin.name for pin in resolve(oak.lock, Target("aarch64", "2.36", markers))
    }


def test_the_same_inventory_gives_the_same_bytes_and_another_value_changes_one_file(tmp_path: Path) -> None:
    once, twice = desired(tmp_path), desired(tmp_path)
    assert once == twice
    other = desired(tmp_path, INVENTORY + "program.recording.duration = 7\n")
    for name in ("oak", "reed"):
        before, after = contents(once[name]), contents(other[name])
        assert [path for path in after if before.get(path) != after[path]] == ["home/config/program.json"]


def test_the_scope_decides_where_units_look_for_the_home(tmp_path: Path) -> None:
    oak, reed = (contents(wanted) for wanted in desired(tmp_path).values())
    assert b'"/var/lib/acoupi/.acoupi/bin/acoupi-workers-start.sh"' in oak["units/acoupi-worker@recording.service"]
    assert b'"%h/.acoupi/bin/acoupi-workers-start.sh"' in reed["units/acoupi-worker@recording.service"]
    assert b"WantedBy=default.target" in reed["units/acoupi.target"]
    assert b"processing" not in reed["units/acoupi.target"]


def test_what_a_person_reads_shows_no_secret_unless_it_is_asked_for(tmp_path: Path) -> None:
    oak = desired(tmp_path)["oak"]
    assert [file.path for file in oak.files if SECRET.encode() in file.content] == ["home/config/program.json"]
    assert not any(SECRET.encode() in file.content for file in masked(oak))
    assert len(masked(oak)) == len(oak.files)

    write(oak, tmp_path / "out" / "oak", show_secrets=False)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in path.read_bytes() for path in files)
    write(oak, tmp_path / "out" / "oak", show_secrets=True)
    assert SECRET in (tmp_path / "out/oak/home/config/program.json").read_text()


def test_what_is_written_is_the_home_and_the_units_and_only_its_owner_may_look(tmp_path: Path) -> None:
    oak = desired(tmp_path)["oak"]
    output = tmp_path / "out"
    old_umask = os.umask(0)
    try:
        write(oak, output / "oak", show_secrets=True)
    finally:
        os.umask(old_umask)
    written = {
        path.relative_to(output / "oak").as_posix(): path for path in (output / "oak").rglob("*") if path.is_file()
    }
    expected = {file.path: file for file in oak.files if not file.path.startswith("lib/")}
    assert set(written) == set(expected)
    for name, path in written.items():
        assert path.read_bytes() == expected[name].content
        assert path.stat().st_mode & 0o777 == expected[name].mode
    folders = [output, *(path for path in output.rglob("*") if path.is_dir())]
    assert {oct(folder.stat().st_mode & 0o777) for folder in folders} == {"0o700"}
    write(replace(oak, files=oak.files[-1:]), output / "oak", show_secrets=True)
    assert [path.name for path in (output / "oak").rglob("*") if path.is_file()] == [Path(oak.files[-1].path).name]
    assert [path.name for path in output.iterdir()] == ["oak"]


def test_nothing_is_written_outside_of_the_folder_or_over_what_is_not_ours(tmp_path: Path) -> None:
    evil = replace(desired(tmp_path)["oak"], files=(File("home/../../../evil", b"x"),))
    with pytest.raises(UsageError):
        write(evil, tmp_path / "out" / "oak", show_secrets=True)
    assert not list(tmp_path.rglob("evil"))
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    (tmp_path / "link").symlink_to(theirs)
    for there in (theirs, tmp_path / "link", theirs / "thesis.txt"):
        with pytest.raises(UsageError, match="something else is there"):
            write(desired(tmp_path)["oak"], there, show_secrets=True)
    assert (theirs / "thesis.txt").read_text() == "years of work"


def full_disk(self: Path, content: bytes) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))


def test_a_place_that_cannot_be_written_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sensors.ini").write_text(INVENTORY)
    (tmp_path / "file").write_text("years of work")
    monkeypatch.chdir(tmp_path)
    for output, reason in (("file", "file exists"), ("file/below", "not a directory"), ("/proc/x", "no such file")):
        assert main(["render", "sensors.ini", "--output", output]) == 1
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert said.err.startswith(f"error: {output}: {reason}")
        assert said.err.endswith("; name another --output\n")
    assert (tmp_path / "file").read_text() == "years of work"
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    assert main(["render", "sensors.ini", "--output", "out"]) == 1
    assert "no space left on device; name another --output" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_wrong_template_is_an_error_of_the_host_that_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "systemd").mkdir()
    (tmp_path / "systemd" / "acoupi-extra.service.j2").write_text("{{ nobody_defined_this }}")
    with pytest.raises(ConfigurationError, match=r"sensors\.ini:3: oak: template systemd/acoupi-extra\.service\.j2"):
        desired(tmp_path, templates=(tmp_path,))


def test_a_unit_of_ones_own_is_one_template(tmp_path: Path) -> None:
    (tmp_path / "systemd").mkdir()
    (tmp_path / "systemd" / "acoupi-extra.service.j2").write_text("[Service]\nExecStart={{ home }}/bin/x\n")
    units = contents(desired(tmp_path, templates=(tmp_path,))["oak"])
    assert units["units/acoupi-extra.service"] == b"[Service]\nExecStart=/var/lib/acoupi/.acoupi/bin/x\n"


def own_program(tmp_path: Path, kind: str, module: str) -> Path:
    """A user's program as a package, as a folder with sources, as a folder of modules, or as a wheel."""
    folder = tmp_path / (module if kind == "package" else "mine")
    inside = {"package": folder, "src": folder / "src" / module, "modules": folder / module, "wheel": folder / module}[
        kind
    ]
    inside.mkdir(parents=True)
    (inside / "__init__.py").write_text(PROGRAM)
    (inside / "weights.bin").write_bytes(bytes(range(256)))
    for junk in ("__pycache__/x.pyc", ".git/config"):
        (inside / junk).parent.mkdir()
        (inside / junk).write_text("junk")
    if kind != "wheel":
        return folder
    wheel = tmp_path / f"{module}-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("__init__.py", "weights.bin"):
            archive.write(inside / name, f"{module}/{name}")
    shutil.rmtree(folder)
    return wheel


@pytest.mark.parametrize("kind", ["package", "src", "modules", "wheel"])
def test_a_users_own_program_travels_with_its_data_and_is_found_there(tmp_path: Path, kind: str) -> None:
    module = f"mine_{kind}"
    package = own_program(tmp_path, kind, module)
    oak = desired(tmp_path, OWN.format(module=module, package=package.name))["oak"]
    own = {path: content for path, content in contents(oak).items() if path.startswith(f"lib/{module}/")}
    assert own == {f"lib/{module}/__init__.py": PROGRAM.encode(), f"lib/{module}/weights.bin": bytes(range(256))}
    release = tmp_path / "release"
    for file in oak.files:
        path = release / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
    code = (
        "from pathlib import Path; from acoupi_runtime.home import Home; import acoupi_runtime.system.files as f;"
        "p = f.configured_program(Home(Path('home').absolute())); print(type(p).__module__, f.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=release,
        env={"PYTHONPATH": str(release / "lib"), "PATH": os.environ["PATH"]},
        timeout=120,
    )
    assert done.stdout.split() == [module, str(release / "lib/acoupi_runtime/system/files.py")], done.stderr


def test_what_a_users_own_program_needs_is_added_to_the_lock(tmp_path: Path) -> None:
    package = own_program(tmp_path, "modules", "mine_locked")
    (package / "requirements.lock").write_text("tflite==1.0 --hash=sha256:" + "0" * 64 + "\n")
    oak = desired(tmp_path, OWN.format(module="mine_locked", package=package.name))["oak"]
    assert oak.lock.splitlines()[-1].startswith("tflite==1.0 ")


def test_a_users_own_program_may_not_replace_ours(tmp_path: Path) -> None:
    package = own_program(tmp_path, "modules", "mine_and_yours")
    (package / "acoupi_runtime").mkdir()
    (package / "acoupi_runtime" / "__init__.py").touch()
    with pytest.raises(ConfigurationError, match="would replace a part of acoupi_runtime"):
        desired(tmp_path, OWN.format(module="mine_and_yours", package=package.name))
