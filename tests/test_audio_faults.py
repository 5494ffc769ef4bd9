"""The recorder when the card is full, read-only or fails, and when it is killed: nothing that was recorded is lost."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from acoupi_runtime.audio.guano import read_guano
from acoupi_runtime.audio.paths import make_spool, spool_dir
from acoupi_runtime.audio.repair import repair_parts
from acoupi_runtime.audio.state import RecorderState, read_state
from acoupi_runtime.configuration import BasicConfig
from acoupi_runtime.errors import RecordingError
from acoupi_runtime.home import Home
from tests.audio_rig import Card, Kept, SimulatedClock, breaks, check_files, configured, counting_wav, joined, simulate
from tests.support import wait_until

ROOT = Path(__file__).parents[1]


def kept(spool: Path) -> Kept:
    """All recordings in a spool, each of which must be whole."""
    found = [read_guano(path) for path in spool.glob("*.wav")]
    assert None not in found
    result = Kept([each for each in found if each is not None])
    check_files(result)
    return result


def program(folder: Path, **sections: dict[str, Any]) -> tuple[Home, BasicConfig]:
    """A home whose microphone is a file that counts."""
    sound = counting_wav(folder / "count.wav", 48_000)
    config = configured(folder, microphone={"device_name": f"file:{sound}"}, **sections)
    home = Home(folder / "home")
    home.config_dir.mkdir(parents=True)
    home.program_file.write_text(config.model_dump_json())
    return home, config


def command(home: Home, seconds: float) -> list[str]:
    return [sys.executable, "-m", "tests.audio_process", str(home.root), str(seconds)]


def completed(home: Home) -> list[str]:
    """Ids of the recordings that the process said to be complete."""
    return [each.name for each in (home.root / "completed").iterdir()]


ENVIRONMENT = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


def test_a_killed_recording_is_repaired_and_loses_nothing_that_was_written(tmp_path: Path) -> None:
    home, config = program(tmp_path, recording={"duration": 600, "continuous": True})
    spool = spool_dir(config)
    process = subprocess.Popen(command(home, 0), cwd=ROOT, env=ENVIRONMENT)
    try:

        def written() -> int:
            return sum(part.stat().st_size for part in spool.glob("*.part")) - 4096

        wait_until(lambda: written() > 3 * 96_000, 90, "three seconds of sound in the file")
        assert repair_parts(spool) == [], "a recorder holds it"
        process.kill()
        process.wait()
        size = written()
        (path,) = repair_parts(spool)
    finally:
        process.kill()
        process.wait()
    found = kept(spool)
    ((recording, capture),) = found.all
    assert recording.path == path
    assert (capture.truncated, capture.first_frame, capture.frames) == (True, 0, size // 2)
    assert recording.duration == pytest.approx(size / 96_000)
    assert breaks(joined(found)) == 0
    assert read_state(home) is None, "nobody runs"


def test_sigterm_closes_the_file_whole_at_once(tmp_path: Path) -> None:
    home, config = program(tmp_path, recording={"duration": 600, "continuous": True})
    process = subprocess.Popen(command(home, 0), cwd=ROOT, env=ENVIRONMENT)
    try:

        def two_seconds() -> RecorderState | None:
            state = read_state(home)
            return state if state is not None and state.frames > 96_000 else None

        state = wait_until(two_seconds, 90, "two seconds of sound")
        assert state is not None
        assert (state.pid, state.state) == (process.pid, "recording")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    found = kept(spool_dir(config))
    assert [str(recording.id) for recording in found.recordings] == completed(home)
    assert not found.captures[0].truncated
    assert breaks(joined(found)) == 0
    assert len(joined(found)) >= 96_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB, of which 16 are the reserve."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24000000", "acoupi", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_up(filler: Path) -> None:
    """Let a file grow until the disk is full."""
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


FULL = {"duration": 10, "continuous": True}


def test_a_full_disk_pauses_recording_before_the_reserve_is_touched_and_room_resumes_it(
    tmp_path: Path, small_disk: Path
) -> None:
    config = configured(
        small_disk, recording=FULL, retention={"reserve": 16}, paths={"tmp_audio": str(small_disk / "spool")}
    )
    spool, clock = spool_dir(config), SimulatedClock()
    seen: list[int] = []

    def make_room() -> None:
        seen.append(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize)
        for path in spool.glob("*.wav"):
            path.unlink()

    clock.at(150, make_room)
    run = simulate(tmp_path, config, 190, clock=clock, source=Card(clock))
    assert seen[0] >= 16e6, "the reserve is whole"
    assert seen[0] < 18e6
    states = [state.state for state in run.states]
    first, last = states.index("paused"), len(states) - 1 - states[::-1].index("paused")
    assert set(states[first : last + 1]) == {"paused"}
    assert "reserve" in run.states[first].detail
    assert states[-1] == "recording"
    assert run.states[-1].lost_seconds == pytest.approx(
        run.states[last].boottime - run.states[first].boottime - 10, abs=4
    ), "what was not recorded is counted, all but what the buffer saved"


def test_a_disk_that_fills_up_while_a_file_is_written_costs_nothing_if_it_does_not_last(
    tmp_path: Path, small_disk: Path
) -> None:
    config = configured(
        small_disk, recording=FULL, retention={"reserve": 16}, paths={"tmp_audio": str(small_disk / "s")}
    )
    clock, filler = SimulatedClock(), small_disk / "filler"
    clock.at(12, lambda: fill_up(filler))
    clock.at(18, filler.unlink)
    run = simulate(tmp_path, config, 40, clock=clock, source=Card(clock))
    check_files(run.kept)
    assert any(state.state == "paused" for state in run.states)
    assert run.states[-1].state == "recording"
    assert run.states[-1].lost_seconds == 0
    assert breaks(joined(run.kept)) == 0
    assert len(joined(run.kept)) > 38 * 48_000


def test_a_disk_that_is_full_for_a_moment_before_the_end_costs_nothing(tmp_path: Path, small_disk: Path) -> None:
    config = configured(
        small_disk,
        recording=FULL | {"buffer": 2},  # it looks twice a second then, and tries again after a second
        retention={"reserve": 16},
        paths={"tmp_audio": str(small_disk / "s")},
    )
    clock, filler = SimulatedClock(), small_disk / "filler"
    clock.at(18.2, lambda: fill_up(filler))
    clock.at(18.8, filler.unlink)
    run = simulate(tmp_path, config, 18.9, clock=clock, source=Card(clock))
    check_files(run.kept)
    assert any(state.state == "paused" for state in run.states)
    assert breaks(joined(run.kept)) == 0
    assert len(joined(run.kept)) > 18.7 * 48_000


def test_a_read_only_disk_is_noticed_said_and_survived(tmp_path: Path, small_disk: Path) -> None:
    config = configured(
        small_disk,
        recording={"duration": 2, "interval": 10},
        retention={"reserve": 16},
        paths={"tmp_audio": str(small_disk / "s")},
    )
    clock = SimulatedClock()

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(small_disk)], check=True)

    clock.at(15.5, lambda: remount("ro"))
    clock.at(65.5, lambda: remount("rw"))
    run = simulate(tmp_path, config, 98, clock=clock, source=Card(clock))
    check_files(run.kept)
    errors = [state for state in run.states if state.state == "error"]
    assert errors
    assert "Read-only" in errors[0].detail
    assert run.states[-1].state in {"recording", "listening"}
    assert [round(capture.boottime - 5000) for capture in run.kept.captures] == [0, 10, 60, 70, 80, 90]
    assert run.states[-1].lost_seconds == pytest.approx(8, abs=0.1), "the one at 60 s was still in the ring"


def test_files_that_cannot_grow_are_followed_by_others_that_meet_at_the_frame(tmp_path: Path) -> None:
    clock = SimulatedClock()
    config = configured(tmp_path, recording={"duration": 30, "continuous": True})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_001, hard))
    try:
        run = simulate(tmp_path, config, 60, clock=clock, source=Card(clock))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    check_files(run.kept)
    assert any("too large" in state.detail for state in run.states)
    assert run.states[-1].lost_seconds == 0
    assert breaks(joined(run.kept)) == 0
    assert len(joined(run.kept)) > 58 * 48_000


def traced(folder: Path, home: Home, *options: str) -> subprocess.CompletedProcess[str]:
    """Let a recorder run for 30 s under strace, which writes `trace`."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed (apt-get install strace)")
    ran = subprocess.run(
        [strace, *options, "-o", str(folder / "trace"), *command(home, 30)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    if "ptrace" in ran.stderr.lower():
        pytest.skip(f"strace may not trace here: {ran.stderr.strip()}")
    return ran


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        ("fsync", "error=ENOSPC:when=1+4"),
        ("write", "error=EIO:when=30+7"),
        ("write", "error=EINTR:when=20+3"),
        ("rename", "error=EROFS:when=2+3"),
    ],
)
def test_a_system_call_that_fails_again_and_again_costs_no_frame(tmp_path: Path, call: str, fault: str) -> None:
    home, config = program(tmp_path, recording={"duration": 2.5, "continuous": True})
    ran = traced(tmp_path, home, "-f", "-qq", f"--trace={call}", f"--inject={call}:{fault}")
    assert (tmp_path / "trace").read_text().count("INJECTED") > 1
    assert ran.returncode == 0, ran.stderr
    spool = spool_dir(config)
    repair_parts(spool)
    found = kept(spool)
    assert not list(spool.glob("*.part"))
    assert set(completed(home)) <= {str(recording.id) for recording in found.recordings}
    pieces = sorted((capture.first_frame, capture.frames) for capture in found.captures)
    end = 0
    for first, frames in pieces:
        assert first == end, "no frame is missing between two files, and none is in two"
        end = first + frames
    assert breaks(joined(found)) == 0
    assert end > 28 * 48_000


def test_a_recording_is_given_its_name_only_when_it_would_outlast_a_power_cut(tmp_path: Path) -> None:
    home, config = program(tmp_path, recording={"duration": 12, "continuous": True})
    traced(tmp_path, home, "-f", "-y", "-qq", "--trace=pwrite64,fsync,rename")
    calls = [line.split(maxsplit=1)[1] for line in (tmp_path / "trace").read_text().splitlines()]
    spool = spool_dir(config)
    found = kept(spool)
    assert len(found.all) == 3
    for recording, capture in found.all:
        name = f"{recording.path}.part"
        first = next(at for at, call in enumerate(calls) if name in call)
        mine = [call.split("(")[0] for call in calls[first:] if name in call or f"<{spool}>" in call]
        end = mine.index("rename")
        assert mine[end - 2 : end + 2] == ["pwrite64", "fsync", "rename", "fsync"], "the file, its name, its folder"
        assert mine[:end].count("fsync") > capture.frames / 48_000 / 5, "a power cut takes at most five seconds"


def test_a_card_that_stalls_for_two_seconds_loses_nothing(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed (apt-get install strace)")
    home, config = program(tmp_path, recording={"duration": 2, "continuous": True})
    stall = [strace, "-f", "-qq", "-o", str(tmp_path / "trace"), "--trace=fsync"]
    stall += ["--inject=fsync:delay_enter=2000000:when=2+6"]
    process = subprocess.Popen([*stall, *command(home, 0)], cwd=ROOT, env=ENVIRONMENT)
    try:

        def recorder() -> RecorderState | None:
            assert process.poll() is None, "strace may not trace here"
            state = read_state(home)
            return state if state is not None and state.frames > 10 * 48_000 else None

        state = wait_until(recorder, 120, "ten seconds of sound")
        assert state is not None
        os.kill(state.pid, signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert "DELAYED" in (tmp_path / "trace").read_text()
    found = kept(spool_dir(config))
    assert breaks(joined(found)) == 0
    assert len(joined(found)) >= 10 * 48_000
    assert not any(capture.overflows for capture in found.captures)


def test_a_spool_that_somebody_else_could_have_planted_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "spool").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RecordingError, match="not a folder of this user"):
        make_spool(tmp_path / "spool")


def test_a_spool_in_memory_is_a_private_folder_of_the_users_own(small_disk: Path) -> None:
    config = configured(small_disk, paths={"tmp_audio": str(small_disk)})
    spool = spool_dir(config)
    assert spool == small_disk / f"acoupi-{os.getuid()}"
    make_spool(spool)
    assert spool.stat().st_mode & 0o777 == 0o700
    make_spool(spool)
    spool.chmod(0o755)
    with pytest.raises(RecordingError, match="other users"):
        make_spool(spool)


def test_unset_the_spool_is_beside_the_recordings_and_closed_to_others(tmp_path: Path) -> None:
    spool = spool_dir(configured(tmp_path))
    assert spool == tmp_path / "recordings" / ".spool"
    make_spool(spool)
    assert spool.stat().st_mode & 0o007 == 0
