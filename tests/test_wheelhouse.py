"""Wheels fit the device's Python and machine, are checked by hash, and are kept for a trip without internet."""

from __future__ import annotations

import errno
import hashlib
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from acoupi_fleet.errors import ConfigurationError, HostError
from acoupi_fleet.wheelhouse import Target, Wheelhouse, bundled_lock, environment_key, resolve

if TYPE_CHECKING:
    from pathlib import Path


def target(python: str = "3.11.2", machine: str = "aarch64", glibc: str = "2.36") -> Target:
    markers = {
        "implementation_name": "cpython",
        "implementation_version": python,
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_release": "6.1.0",
        "platform_system": "Linux",
        "platform_version": "#1",
        "python_full_version": python,
        "python_version": ".".join(python.split(".")[:2]),
        "sys_platform": "linux",
    }
    return Target(machine, glibc, markers)


def make_wheel(folder: Path, name: str, tag: str = "py3-none-any") -> str:
    """Write a wheel that pip takes, and return its line of a lock."""
    path = folder / f"{name}-1.0-{tag}.whl"
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n")
        wheel.writestr(f"{about}/RECORD", "")
    return f"{name}==1.0 \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that stands where the package index stands, for pip itself."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def names(wheels: tuple[Path, ...]) -> list[str]:
    return [wheel.name for wheel in wheels]


def test_markers_are_evaluated_for_the_device_and_not_for_this_computer() -> None:
    lock = bundled_lock()
    assert "async-timeout" in {pin.name for pin in resolve(lock, target("3.11.2"))}
    assert "async-timeout" not in {pin.name for pin in resolve(lock, target("3.11.9"))}
    assert "numpy" in {pin.name for pin in resolve(lock, target("3.13.5"))}


def test_every_entry_of_the_lock_has_one_exact_version_and_hashes() -> None:
    pins = resolve(bundled_lock(), target())
    assert {"celery", "redis", "numpy", "sounddevice", "pydantic", "astral", "pip"} <= {pin.name for pin in pins}
    assert all(pin.hashes for pin in pins)
    assert not {"fabric", "paramiko", "rich"} & {pin.name for pin in pins}


def test_the_environments_name_follows_what_decides_which_wheels_fit() -> None:
    lock = bundled_lock()
    key = environment_key(lock, target("3.11.4"))
    assert key == environment_key(lock, target("3.11.9"))
    others = [target("3.11.2"), target("3.12.1"), target("3.11.4", "x86_64"), target("3.11.4", glibc="2.31")]
    assert len({key, *(environment_key(lock, other) for other in others)}) == 5


def test_every_platform_tag_up_to_the_devices_glibc_is_named() -> None:
    tags = target(glibc="2.28").platforms
    assert tags[0] == "manylinux_2_28_aarch64"
    assert tags[-2:] == ("manylinux_2_17_aarch64", "manylinux2014_aarch64")
    assert "manylinux1_x86_64" in target(machine="x86_64").platforms


@pytest.mark.parametrize(
    ("lock", "line"),
    [
        ("six>=1.0 --hash=sha256:" + "a" * 64, "six has no exact version or no hash"),
        ("six==1.0", "six has no exact version or no hash"),
        ("not a requirement!", "make it again with `make lock`"),
        (2 * ("six==1.0 --hash=sha256:" + "a" * 64 + "\n"), "two versions of six"),
    ],
)
def test_a_lock_that_does_not_lock_is_refused(lock: str, line: str) -> None:
    with pytest.raises(ConfigurationError, match=line.replace("!", ".")):
        resolve(lock, target())


def test_wheels_for_another_machine_are_downloaded_once_and_then_need_no_index(tmp_path: Path, index: Path) -> None:
    lock = make_wheel(index, "pure") + make_wheel(index, "built", "cp311-cp311-manylinux_2_17_aarch64")
    wheels = Wheelhouse(lock, tmp_path / "cache").ensure(target())
    assert names(wheels) == ["built-1.0-cp311-cp311-manylinux_2_17_aarch64.whl", "pure-1.0-py3-none-any.whl"]
    for wheel in index.iterdir():
        wheel.unlink()
    assert Wheelhouse(lock, tmp_path / "cache").ensure(target()) == wheels


def test_a_wheel_that_does_not_exist_for_the_device_is_named_in_one_line(tmp_path: Path, index: Path) -> None:
    lock = make_wheel(index, "pure") + make_wheel(index, "built", "cp311-cp311-manylinux_2_17_aarch64")
    with pytest.raises(HostError) as refused:
        Wheelhouse(lock, tmp_path / "cache").ensure(target(machine="armv7l"))
    assert "there is no wheel of built==1.0 for it" in str(refused.value)
    assert "Python 3.11.2 on armv7l (glibc 2.36)" in str(refused.value)
    assert not list((tmp_path / "cache").glob("*/"))


def test_a_flipped_byte_in_the_cache_is_found_and_the_wheel_is_fetched_again(tmp_path: Path, index: Path) -> None:
    lock = make_wheel(index, "pure")
    (wheel,) = Wheelhouse(lock, tmp_path / "cache").ensure(target())
    right = wheel.read_bytes()
    wheel.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    assert Wheelhouse(lock, tmp_path / "cache").ensure(target()) == (wheel,)
    assert wheel.read_bytes() == right


def test_a_wheel_that_is_not_the_locked_one_is_refused_and_not_kept(tmp_path: Path, index: Path) -> None:
    lock = make_wheel(index, "pure")
    path = next(index.iterdir())
    with zipfile.ZipFile(path, "a") as wheel:
        wheel.writestr("planted.py", "")
    with pytest.raises(HostError, match="wrong hash"):
        Wheelhouse(lock, tmp_path / "cache").ensure(target())
    assert not list((tmp_path / "cache").glob("*/"))


def test_an_index_that_cannot_be_reached_is_told_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    lock = f"six==1.17.0 --hash=sha256:{'a' * 64}\n"
    with pytest.raises(HostError, match="acoupi-fleet prepare"):
        Wheelhouse(lock, tmp_path / "cache").ensure(target())


@pytest.mark.parametrize("where", ["a file", "below a file", "a folder stands where its lock should"])
def test_a_cache_that_cannot_be_used_is_told_with_its_cure(where: str, tmp_path: Path, index: Path) -> None:
    lock, cache = make_wheel(index, "pure"), tmp_path / "cache"
    if where == "a folder stands where its lock should":
        (cache / f"{environment_key(lock, target())}.lock").mkdir(parents=True)
    else:
        cache.touch()
        cache = cache if where == "a file" else cache / "acoupi-fleet"
    for _ in range(2):  # one answer for each host
        with pytest.raises(HostError, match=r"cannot be used: .*; make room, correct its mode, or set") as refused:
            Wheelhouse(lock, cache).ensure(target())
        assert f"the cache {cache} cannot" in str(refused.value)


def test_a_disk_that_is_full_is_told_with_its_cure_and_nothing_half_is_kept(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    lock = make_wheel(index, "pure")
    monkeypatch.setattr(type(tmp_path), "write_text", full)
    with pytest.raises(HostError, match="No space left on device; make room"):
        Wheelhouse(lock, tmp_path / "cache").ensure(target())
    assert not list((tmp_path / "cache").glob("*/"))


def test_hosts_and_runs_that_want_the_same_wheels_at_once_share_them(tmp_path: Path, index: Path) -> None:
    lock = make_wheel(index, "pure")
    houses = [Wheelhouse(lock, tmp_path / "cache") for _ in range(2)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda number: houses[number % 2].ensure(target()), range(6)))
    assert set(answers) == {answers[0]}
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == ["", ".lock"]
