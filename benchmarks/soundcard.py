"""A sound card for benchmarks: PulseAudio with a null sink, whose timer is its clock, and noise played into it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NAME = "ultramic"
PATIENCE = 60.0
ALSA = Path("/usr/share/alsa/alsa.conf")


def why_not() -> str | None:
    """What is missing here; None if nothing is."""
    missing = [tool for tool in ("pulseaudio", "pacat") if shutil.which(tool) is None]
    missing += [] if any(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so")) else ["libasound2-plugins"]
    missing += [] if any(Path("/usr/lib").glob("*/libportaudio.so.2")) else ["libportaudio2"]
    packages = "pulseaudio pulseaudio-utils libasound2-plugins libportaudio2"
    return f"{', '.join(missing)}: missing; apt-get install {packages}" if missing else None


@contextlib.contextmanager
def sound_card(rate: int, noise: Path, *, plugins: bool = True) -> Iterator[dict[str, str]]:
    """Yield the environment in which a process hears `noise` (raw, mono, 16 bits) from it, and no other card.

    It is ALSA's default, too: the reference system looks at that while it is set up. Without `plugins`, what
    packages add to ALSA is hidden, as the recorder's unit hides it; what this card itself is made of stays.
    """
    # Not below the caller's folder: the path of a socket has room for 107 bytes.
    with tempfile.TemporaryDirectory(prefix="acoupi-card-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "card.pa").write_text(
            f"load-module module-null-sink sink_name=mic rate={rate} channels=1 format=s16le\n"
            f"load-module module-native-protocol-unix auth-anonymous=1 socket={folder}/sock\n"
            "set-default-sink mic\nset-default-source mic.monitor\n"
        )
        (folder / "asound.conf").write_text(
            f'pcm.{NAME} {{ type pulse\n server "unix:{folder}/sock"\n device "mic.monitor"\n'
            f' hint {{ show on\n description "virtual microphone" }} }}\npcm.!default "{NAME}"\n'
        )
        alsa = [line for line in ALSA.read_text().splitlines() if plugins or "alsa/conf.d" not in line]
        (folder / "alsa.conf").write_text("\n".join(alsa))
        environment = {
            **os.environ,
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "ALSA_CONFIG_PATH": f"{folder}/alsa.conf:{folder}/asound.conf",
        }
        pulse = ["pulseaudio", "-n", "-F", str(folder / "card.pa"), "--daemonize=no", "--exit-idle-time=-1"]
        pulse += ["--use-pid-file=no", "--disable-shm=yes", "--high-priority=no", "--log-target=stderr"]
        pacat = f"while :; do cat {noise}; done | exec pacat -s unix:{folder}/sock -d mic --raw --format=s16le"
        pacat += f" --channels=1 --rate={rate} --latency-msec=2000"
        for command in (pulse, ["sh", "-c", pacat]):
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            stack.callback(_end, process)
            until = time.monotonic() + PATIENCE
            while not (folder / "sock").exists():
                if time.monotonic() > until:
                    raise SystemExit(f"soundcard: PulseAudio has made no socket in {PATIENCE:g} s")
                time.sleep(0.05)
        yield environment


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, and those that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 15)
    process.wait()
