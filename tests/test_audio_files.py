"""The files: read by independent readers, whole to the frame, and repaired wherever they were cut."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import threading
import wave
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import guano
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from acoupi_runtime.audio.guano import compose, parse, read_guano
from acoupi_runtime.audio.repair import repair_parts
from acoupi_runtime.audio.take import Moment, Take
from acoupi_runtime.configuration import BasicConfig
from acoupi_runtime.data import Capture, Deployment, Recording
from tests.audio_rig import PLACE, configured, samples

MOMENT = Moment("a-boot", 1234.5, 1_780_000_000.25, synced=True, true_samplerate=47_998.5)


def noise(frames: int, channels: int, bits: int) -> np.ndarray[Any, Any]:
    limit = 1 << (bits - 1)
    values = np.random.default_rng(frames).integers(-limit, limit, (frames, channels))
    return values.astype("<i2" if bits == 16 else "<i4")


def begin(spool: Path, config: BasicConfig) -> Take:
    spool.mkdir(exist_ok=True)
    return Take(spool, config, PLACE, stream="a-stream", start=777, trigger="schedule", moment=MOMENT)


def record(
    spool: Path, config: BasicConfig, sound: np.ndarray[Any, Any], overflows: Sequence[tuple[int, int]] = ()
) -> tuple[Recording, Capture]:
    take = begin(spool, config)
    for start in range(0, len(sound), 5000):
        take.write(sound[start : start + 5000])
    made = take.complete(MOMENT, overflows)
    assert made is not None
    return made


FORMS = [
    (suffix, bits, channels, rate)
    for suffix in ("wav", "flac")
    for bits, channels, rate in ((16, 1, 48_000), (24, 1, 8_000), (16, 2, 384_000), (24, 3, 96_000))
]


@pytest.mark.parametrize(("suffix", "bits", "channels", "rate"), FORMS)
def test_every_reader_finds_exactly_the_frames_that_were_written(
    tmp_path: Path, suffix: str, bits: int, channels: int, rate: int
) -> None:
    config = configured(
        tmp_path,
        microphone={"samplerate": rate, "audio_channels": channels},
        recording={"format": suffix, "bits": bits},
    )
    sound = noise(12_345, channels, bits)
    recording, capture = record(tmp_path / "spool", config, sound)
    path = recording.path
    assert path is not None
    assert path.name == f"{recording.id}.{suffix}"
    assert list(path.parent.iterdir()) == [path]
    assert (samples(path) == sound).all()
    info = soundfile.info(str(path))
    assert (info.samplerate, info.channels, info.frames) == (rate, channels, 12_345)
    assert read_guano(path) == (recording, capture)
    assert capture.frames == 12_345
    assert recording.duration == 12_345 / rate
    if suffix == "wav":
        with wave.open(str(path)) as file:
            assert (file.getnframes(), file.getsampwidth() * 8) == (12_345, bits)
        assert path.stat().st_size % 2 == 0


@pytest.mark.parametrize(("suffix", "bits", "channels", "rate"), FORMS)
def test_sox_reads_them_too(tmp_path: Path, suffix: str, bits: int, channels: int, rate: int) -> None:
    soxi = shutil.which("soxi")
    if soxi is None:
        pytest.skip("soxi is not installed (apt-get install sox)")
    config = configured(
        tmp_path,
        microphone={"samplerate": rate, "audio_channels": channels},
        recording={"format": suffix, "bits": bits},
    )
    recording, _ = record(tmp_path / "spool", config, noise(12_345, channels, bits))
    said = [
        subprocess.run([soxi, each, str(recording.path)], capture_output=True, text=True, check=True)
        for each in ("-r", "-c", "-s", "-b")
    ]
    assert [each.stdout.strip() for each in said] == [str(rate), str(channels), "12345", str(bits)]
    assert [each.stderr for each in said] == [""] * 4


def test_the_guano_package_reads_the_standard_fields(tmp_path: Path) -> None:
    config = configured(tmp_path, microphone={"samplerate": 384_000, "time_expansion": 10})
    recording, _ = record(tmp_path / "spool", config, noise(38_400, 1, 16), [(5, 100), (77, 0)])
    found = guano.GuanoFile(str(recording.path), strict=True)
    assert found["GUANO|Version"] == "1.0"
    assert found["Timestamp"] == recording.created_on == datetime.fromtimestamp(1_780_001_234.75, UTC)
    assert (found["Length"], found["Samplerate"], found["TE"]) == (0.1, 384_000, 10)
    assert found["Loc Position"] == (52.5, -13.25)
    assert found["Acoupi|Deployment Name"] == PLACE.name
    assert found.wav_params.framerate == 38_400, "a file with time expansion is marked with the slower rate"
    assert found.wav_params.nframes == 38_400


deployments = st.builds(
    Deployment,
    name=st.text(min_size=1, max_size=200),
    latitude=st.none() | st.floats(-90, 90),
    longitude=st.none() | st.floats(-180, 180),
)


@settings(deadline=None)
@given(deployment=deployments, overflows=st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 40))))
def test_any_metadata_survives_its_text(deployment: Deployment, overflows: list[tuple[int, int]]) -> None:
    recording = Recording(duration=1 / 3, samplerate=44_100, deployment=deployment)
    capture = Capture(
        frames=14_700,
        stream="s",
        first_frame=9,
        boot_id="b",
        boottime=0.1,
        clock_synced=False,
        overflows=tuple(overflows),
    )
    assert parse(compose(recording, capture)) == (recording, capture)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\0\0\0\0WAVE" * 20, b"fLaC" + bytes(100), os.urandom(9999)])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_files_of_others_are_none_of_ours(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content)
    assert read_guano(path) is None


def left_behind(spool: Path, config: BasicConfig, sound: np.ndarray[Any, Any]) -> tuple[Path, Take]:
    """What a process leaves that is killed: the take is not completed, and its lock goes with its descriptor."""
    take = begin(spool, config)
    for start in range(0, len(sound), 5000):
        take.write(sound[start : start + 5000])
    (part,) = spool.glob("*.part")
    copy = part.with_name(f"{take.id}.{config.recording.format}.cut")
    copy.write_bytes(part.read_bytes())
    take.complete(MOMENT, ())
    for each in spool.glob(f"{take.id}.{config.recording.format}"):
        each.unlink()
    return copy.rename(part), take


@pytest.mark.parametrize("bits", [16, 24])
def test_a_cut_wav_is_whole_up_to_the_cut_wherever_that_is(tmp_path: Path, bits: Literal[16, 24]) -> None:
    config, spool = configured(tmp_path, recording={"bits": bits}), tmp_path / "spool"
    sound = noise(3000, 1, bits)
    part, take = left_behind(spool, config, sound)
    whole = part.read_bytes()
    start = len(whole) - 3000 * bits // 8
    assert start % 4096 == 0, "the sound begins at a page"
    for cut in (*range(start - 3, start + 20), len(whole) - 1, len(whole)):
        part.write_bytes(whole[:cut])
        frames = max(0, cut - start) // (bits // 8)
        if cut < start:
            assert repair_parts(spool) == []
            (spool / f"{part.name}.broken").unlink()
            continue
        assert repair_parts(spool) == ([part.with_suffix("")] if frames else [])
        assert not part.exists()
        if frames:
            path = part.with_suffix("")
            assert (samples(path) == sound[:frames]).all()
            found = read_guano(path)
            assert found is not None
            recording, capture = found
            assert recording.id == take.id
            assert recording.deployment == PLACE
            assert (capture.truncated, capture.frames, capture.first_frame) == (True, frames, 777)
            assert recording.duration == frames / 48_000
            assert guano.GuanoFile(str(path), strict=True)["Length"] == pytest.approx(recording.duration, abs=1e-6)
            path.unlink()


@pytest.mark.parametrize(("bits", "channels"), [(16, 1), (24, 2)])
def test_a_cut_flac_is_whole_up_to_its_last_complete_frame(tmp_path: Path, bits: int, channels: int) -> None:
    config = configured(tmp_path, recording={"format": "flac", "bits": bits}, microphone={"audio_channels": channels})
    spool, sound = tmp_path / "spool", noise(60_000, channels, bits)
    part, take = left_behind(spool, config, sound)
    whole, found_frames = part.read_bytes(), set()
    for cut in (len(whole), len(whole) - 1, len(whole) - 30_000, len(whole) * 2 // 3, len(whole) // 2, 20_000):
        for rest in (b"", bytes(5000)):  # a power cut may also leave zeros behind what was synced
            part.write_bytes(whole[:cut] + rest)
            made = repair_parts(spool)
            if not made:
                continue
            (path,) = made
            got = samples(path)
            assert len(got) % 4096 == 0
            assert path.stat().st_size <= cut, "what stands behind the last frame is cut off"
            assert (got == sound[: len(got)]).all()
            found = read_guano(path)
            assert found is not None
            assert (found[0].id, found[1].frames, found[1].truncated) == (take.id, len(got), True)
            found_frames.add(len(got))
            path.unlink()
    assert max(found_frames) >= 60_000 - 2 * 4096
    assert len(found_frames) > 2


def test_a_file_that_was_complete_and_only_not_renamed_is_not_called_cut(tmp_path: Path) -> None:
    for suffix in ("wav", "flac"):
        spool = tmp_path / suffix
        config = configured(tmp_path, recording={"format": suffix})
        recording, capture = record(spool, config, noise(10_000, 1, 16))
        assert recording.path is not None
        recording.path.rename(f"{recording.path}.part")
        assert repair_parts(spool) == [recording.path]
        assert read_guano(recording.path) == (recording, capture)


def test_what_a_live_recorder_holds_is_left_alone(tmp_path: Path) -> None:
    config, spool = configured(tmp_path), tmp_path / "spool"
    take = begin(spool, config)
    take.write(noise(100, 1, 16))
    assert repair_parts(spool) == []
    assert take.complete(MOMENT, ()) is not None
    assert repair_parts(spool) == []


def test_a_rescan_at_any_instant_takes_nothing_away_from_a_recorder(tmp_path: Path) -> None:
    config, spool = configured(tmp_path), tmp_path / "spool"
    done, repaired = threading.Event(), list[Path]()

    def rescan() -> None:
        while not done.is_set():
            repaired.extend(repair_parts(spool))

    other = threading.Thread(target=rescan)
    spool.mkdir()
    other.start()
    try:
        made = [record(spool, config, noise(10, 1, 16))[0].path for _ in range(300)]
    finally:
        done.set()
        other.join()
    assert repaired == []
    assert sorted(spool.iterdir()) == sorted(path for path in made if path is not None)


def test_zeros_are_deleted_and_what_is_unknown_is_kept_aside(tmp_path: Path) -> None:
    (tmp_path / "a.wav.part").write_bytes(bytes(10_000))
    (tmp_path / "b.wav.part").write_bytes(b"")
    (tmp_path / "c.wav.part").write_bytes(b"something else")
    (tmp_path / "d.wav.part").symlink_to("/etc/hostname")
    assert repair_parts(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.wav.part.broken", "d.wav.part"]


def test_a_recording_in_the_making_is_locked_and_not_for_everybody(tmp_path: Path) -> None:
    take = begin(tmp_path / "spool", configured(tmp_path))
    (part,) = (tmp_path / "spool").iterdir()
    assert part.stat().st_mode & 0o007 == 0
    with part.open("rb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert take.complete(MOMENT, ()) is None
    assert list((tmp_path / "spool").iterdir()) == [], "a file without sound is no recording"
