"""The real microphone: named, opened, heard to the bit, held up, pulled out and plugged in again.

The sound card is PulseAudio with a null sink, whose timer is its clock; PortAudio, ALSA and all of our own are real.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from acoupi_runtime.audio.guano import read_guano
from acoupi_runtime.audio.microphone import choose
from acoupi_runtime.audio.paths import spool_dir
from acoupi_runtime.audio.state import RecorderState, read_state
from acoupi_runtime.errors import DeviceConfigurationError, DeviceUnavailableError
from acoupi_runtime.home import Home
from tests.audio_rig import Kept, check_files, configured, counting_wav, joined
from tests.support import end, wait_until

ROOT = Path(__file__).parents[1]

USB = "UltraMic 250K: USB Audio (hw:1,0)"
PI = [
    {"name": "bcm2835 Headphones: - (hw:0,0)", "max_input_channels": 0},
    {"name": USB, "max_input_channels": 1},
    {"name": "sysdefault", "max_input_channels": 128},
    {"name": "default", "max_input_channels": 128},
]
TWO = [*PI, {"name": "AudioMoth: USB Audio (hw:2,0)", "max_input_channels": 1}]


@pytest.mark.parametrize(
    ("wanted", "devices", "expected"),
    [
        (None, PI, (1, USB)),
        ("ultramic", PI, (1, USB)),
        ("UltraMic 250K", TWO, (1, USB)),
        ("audiomoth", TWO, (4, "AudioMoth: USB Audio (hw:2,0)")),
        ("default", PI, (3, "default")),
        (None, [{"name": "pulse", "max_input_channels": 2}], (0, "pulse")),
    ],
)
def test_a_microphone_is_found_by_part_of_its_name_or_as_the_only_one(
    wanted: str | None, devices: list[dict[str, object]], expected: tuple[int, str]
) -> None:
    assert choose(wanted, devices) == expected


@pytest.mark.parametrize(
    ("wanted", "devices", "kind", "words"),
    [
        (None, [], DeviceUnavailableError, "plug it in"),
        ("bat", PI, DeviceUnavailableError, "UltraMic 250K"),
        (None, TWO, DeviceConfigurationError, "AudioMoth"),
        ("usb audio", TWO, DeviceConfigurationError, "UltraMic 250K"),
    ],
)
def test_a_name_that_fits_none_or_several_is_refused_with_the_candidates(
    wanted: str | None, devices: list[dict[str, object]], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        choose(wanted, devices)


@dataclass
class SoundCard:
    """A sound card that counts: what is played into it comes out of its microphone."""

    folder: Path
    rate: int
    processes: list[subprocess.Popen[bytes]]

    @property
    def environment(self) -> dict[str, str]:
        """For a process that shall hear it, and no other card."""
        return {
            **os.environ,
            "HOME": str(self.folder),
            "XDG_RUNTIME_DIR": str(self.folder),
            "ALSA_CONFIG_PATH": f"/usr/share/alsa/alsa.conf:{self.folder}/asound.conf",
        }

    def plug(self) -> None:
        """Plug it in, and play."""
        server = f"unix:{self.folder}/sock"
        pulse = ["pulseaudio", "-n", "-F", str(self.folder / "mic.pa"), "--daemonize=no", "--exit-idle-time=-1"]
        pulse += ["--use-pid-file=no", "--disable-shm=yes", "--high-priority=no", "--log-target=stderr"]
        pacat = ["pacat", "-s", server, "-d", "mic", "--raw", "--format=s16le", "--channels=1", f"--rate={self.rate}"]
        with (self.folder / "log").open("ab") as log:
            self.processes.append(subprocess.Popen(pulse, env=self.environment, stdout=log, stderr=log))
            wait_until((self.folder / "sock").exists, 60, "PulseAudio's socket")
            play = subprocess.Popen([sys.executable, self.folder / "play.py"], stdout=subprocess.PIPE, stderr=log)
            self.processes.append(play)
            sink = subprocess.Popen(
                [*pacat, "--latency-msec=2000"], env=self.environment, stdin=play.stdout, stderr=log
            )
            self.processes.append(sink)
        assert play.stdout is not None
        play.stdout.close()

    def pull(self) -> None:
        """Pull it out."""
        for process in reversed(self.processes):
            end(process)
        self.processes.clear()
        (self.folder / "sock").unlink(missing_ok=True)


PLAY = """
import sys, numpy
block = numpy.arange(-32768, 32768).astype("<i2").tobytes()
try:
    while True:
        sys.stdout.buffer.write(block)
except BrokenPipeError:
    sys.stderr.close()
"""


@pytest.fixture(params=[48_000, 384_000])
def card(request: pytest.FixtureRequest) -> Iterator[SoundCard]:
    missing = [tool for tool in ("pulseaudio", "pacat") if shutil.which(tool) is None]
    missing += [] if any(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so")) else ["libasound2-plugins"]
    missing += [] if any(Path("/usr/lib").glob("*/libportaudio.so.2")) else ["libportaudio2"]
    if missing:
        packages = "pulseaudio pulseaudio-utils libasound2-plugins libportaudio2"
        text = f"{', '.join(missing)}: missing; apt-get install {packages}"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)
    # Not in tmp_path: the path of a socket has room for 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="acoupi-mic-"))
    rate = int(request.param)
    (folder / "mic.pa").write_text(
        f"load-module module-null-sink sink_name=mic rate={rate} channels=1 format=s16le\n"
        f"load-module module-native-protocol-unix auth-anonymous=1 socket={folder}/sock\n"
        "set-default-sink mic\nset-default-source mic.monitor\n"
    )
    (folder / "asound.conf").write_text(
        f'pcm.ultramic {{ type pulse\n server "unix:{folder}/sock"\n device "mic.monitor"\n'
        ' hint { show on\n description "virtual microphone" } }\n'
    )
    (folder / "play.py").write_text(PLAY)
    made = SoundCard(folder, rate, [])
    try:
        made.plug()
        yield made
    finally:
        made.pull()
        shutil.rmtree(folder)


def unexplained(values: np.ndarray[tuple[int], np.dtype[np.int16]]) -> int:
    """How often the count does not go on by one, after the silence was taken out that a starved player leaves.

    A stretch of zeros is what PulseAudio plays when pacat did not come in time; the count stops and goes on with it.
    """
    numbers = values.astype(np.int64)
    quiet = numbers == 0
    # One zero in a row belongs to the count.
    quiet &= np.concatenate(([False], quiet[:-1])) | np.concatenate((quiet[1:], [False]))
    # A stretch that ends or begins with the count's own zero takes that out as well: one number may be left out there.
    heard = numbers[~quiet]
    steps = (np.diff(heard) - 1) % (1 << 16)
    return int(np.count_nonzero(steps > 1))


def test_a_microphone_is_heard_to_the_bit_held_up_pulled_out_and_plugged_in_again(
    tmp_path: Path, card: SoundCard
) -> None:
    config = configured(
        tmp_path,
        microphone={"device_name": "ULTRA", "samplerate": card.rate},
        recording={"duration": 2, "continuous": True},
    )
    home = Home(tmp_path / "home")
    home.config_dir.mkdir(parents=True)
    home.program_file.write_text(config.model_dump_json())

    def state_is(wanted: str, frames: int = 0) -> RecorderState | None:
        state = read_state(home)
        return state if state is not None and state.state == wanted and state.frames >= frames else None

    command = [sys.executable, "-m", "tests.audio_process", str(home.root), "0"]
    recorder = subprocess.Popen(command, cwd=ROOT, env=card.environment)
    try:
        state = wait_until(lambda: state_is("recording", 3 * card.rate), 90, "three seconds of sound")
        assert state is not None
        assert state.device == "ultramic"
        recorder.send_signal(signal.SIGUSR1)  # one second in which no Python thread runs
        wait_until(lambda: state_is("recording", 8 * card.rate), 90, "eight seconds of sound")
        card.pull()
        missing = wait_until(lambda: state_is("no-microphone"), 90, "the recorder to miss the microphone")
        assert missing is not None
        heard = missing.frames
        time.sleep(2)  # long enough for it to be looked for in vain
        assert recorder.poll() is None
        card.plug()
        wait_until(lambda: state_is("recording", heard + 3 * card.rate), 90, "sound after it was plugged in again")
        recorder.send_signal(signal.SIGTERM)
        assert recorder.wait(30) == 0
    finally:
        recorder.kill()
        recorder.wait()
    made = [read_guano(path) for path in spool_dir(config).glob("*.wav")]
    kept = Kept([each for each in made if each is not None])
    check_files(kept)
    assert not list(spool_dir(config).glob("*.part"))
    streams = {capture.stream for capture in kept.captures}
    assert len(streams) >= 2
    for stream in streams:
        part = Kept([each for each in kept.all if each[1].stream == stream])
        end_of_last = 0
        for _, capture in sorted(part.all, key=lambda each: each[1].first_frame):
            assert capture.first_frame == end_of_last
            assert capture.overflows == ()
            end_of_last += capture.frames
        assert unexplained(joined(part)) == 0


def test_a_rate_that_the_card_does_not_have_is_said_and_awaited(tmp_path: Path) -> None:
    sound = counting_wav(tmp_path / "count.wav", 44_100)
    config = configured(tmp_path, microphone={"device_name": f"file:{sound}", "samplerate": 48_000})
    home = Home(tmp_path / "home")
    home.config_dir.mkdir(parents=True)
    home.program_file.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "tests.audio_process", str(home.root), "0"]
    recorder = subprocess.Popen(command, cwd=ROOT)
    try:
        state = wait_until(lambda: read_state(home), 60, "the recorder's state")
        assert state is not None
        assert (state.state, state.frames) == ("error", 0)
        assert "samplerate=44100" in state.detail
        counting_wav(sound, 48_000)
        wait_until(lambda: (found := read_state(home)) is not None and found.frames > 0, 60, "sound")
    finally:
        end(recorder)
