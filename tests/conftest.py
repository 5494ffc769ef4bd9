"""The fixtures of all tests: real sensors (`rig`, `make_sensor`, `fleet`), real servers, and a bench (`make_bench`)."""

from __future__ import annotations

import os
import platform
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from packaging.markers import default_environment
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from acoupi_fleet.errors import HostError
from acoupi_fleet.wheelhouse import Target, Wheelhouse, bundled_lock
from tests.receiver import Receiver, receiving
from tests.sensors import ImageName, Rig, Sensor, why_not
from tests.sensors.rig import CACHE
from tests.support import RedisServer, SshServer, running_redis, running_sshd, why_no_sshd

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Generator, Iterator

    from xdist.remote import Producer  # type: ignore[import-untyped]

    from tests.workbench import MakeBench

WITH_SENSORS = re.compile(r"\b(make_sensor|rig|fleet)\b")  # what the source of a module with sensors has in it
SENSOR_TIMEOUT = 1500  # the first of them may build the image, on a machine that is busy with all other tests


# A shell starts what is in its background with Ctrl-C switched off, and children inherit that: tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)


class MakeSensor(Protocol):
    """Boots one more sensor, which lives until the last test of the module has ended."""

    def __call__(self, image: ImageName = "full", mem: str | None = None) -> Sensor:
        """Return it when it has booted; `mem` (512M) is its RAM."""


class Fleet(Protocol):
    """Runs our command line on the workstation, as its user would: from there only the sensors can be reached."""

    def __call__(
        self, *words: str | Path, cwd: Path | None = None, timeout: float = 900, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Return what it printed and its exit code."""


class OneWorkerForSensors(LoadScopeScheduling):  # type: ignore[misc]
    """A module's tests stay together, and all modules with sensors in one worker: sound has to be paced in real time.

    (The groups of xdist 3.8 are no way to say this: under pytest 9.2 it forgets them without a word.)
    """

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return "sensors" if WITH_SENSORS.search((self.config.rootpath / module).read_text()) else module


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneWorkerForSensors:
    """Whatever --dist says, and in the order of collection: what takes longest has to start first."""
    config.option.loadscopereorder = False
    return OneWorkerForSensors(config, log)


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what boots sensors, give it the time to, and start it first."""
    for item in items:
        if "rig" in getattr(item, "fixturenames", ()):
            if not WITH_SENSORS.search(item.path.read_text()):
                raise pytest.UsageError(f"{item.path}: gets at `rig` unseen; name a fixture of {WITH_SENSORS.pattern}")
            item.add_marker(pytest.mark.sensor)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(SENSOR_TIMEOUT))
    items.sort(key=lambda item: item.get_closest_marker("sensor") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of each sensor's journal where a test with sensors failed."""
    report = yield
    rig = getattr(item, "funcargs", {}).get("rig")
    if report.failed and isinstance(rig, Rig):
        for sensor in rig.sensors():
            report.sections.append((f"journal of {sensor.name}", sensor.journal(lines=80)))
    return report


def _skip_unless_ci(reason: str) -> None:
    """Skip where a person's machine cannot do it; where it must work, that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"this must not be skipped with CI=true: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def rig() -> Iterator[Rig]:
    """The workstation and the sensors of this worker."""
    if (reason := why_not()) is not None:
        _skip_unless_ci(reason)
    with Rig.temporary() as made:
        yield made


@pytest.fixture(scope="module")
def make_sensor(rig: Rig) -> Iterator[MakeSensor]:
    """A factory of sensors that are removed when the module's tests have ended."""
    made: list[Sensor] = []

    def make(image: ImageName = "full", mem: str | None = None) -> Sensor:
        made.extend(rig.add(1, image, mem))
        return made[-1]

    yield make
    rig.take_away(made)


@pytest.fixture(scope="session")
def wheels() -> Path:
    """The workstation's cache, filled with the wheels for the sensors: there is no package index in their network."""
    cache = CACHE / "acoupi-fleet" / "wheels"
    markers = {key: str(value) for key, value in default_environment().items()}
    markers |= {"python_version": "3.11", "python_full_version": "3.11.2", "implementation_version": "3.11.2"}
    target = Target(machine=platform.machine(), glibc="2.36", markers=markers)
    for pause in (5, 30, None):  # the package index may be busy for a minute
        try:
            Wheelhouse(bundled_lock(), cache).ensure(target)
            break
        except HostError:
            if pause is None:
                raise
            time.sleep(pause)
    return cache


@pytest.fixture(scope="session")
def fleet(rig: Rig, wheels: Path) -> Fleet:
    """The command line of the workstation."""
    return rig.fleet


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A real redis-server on a unix socket of this test."""
    with running_redis(tmp_path) as server:
        yield server


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[SshServer]:
    """A real OpenSSH server of this test, for the user who runs it, with a home directory of its own."""
    if (reason := why_no_sshd()) is not None:
        _skip_unless_ci(reason)
    folder = tmp_path / "sshd"
    folder.mkdir()
    with running_sshd(folder) as server:
        yield server


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A real HTTP server of this test, which takes messages."""
    with receiving() as running:
        yield running


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[MakeBench]:
    """A factory of benches in this test's folder."""
    from tests.workbench import MakeBench  # most tests need neither it nor numpy

    make = MakeBench(tmp_path)
    yield make
    make.close()
