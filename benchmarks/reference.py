"""reference: the reference system (PyPI: acoupi), in an environment of its own, as it runs on a device.

It is measured beside ours and is no dependency; nothing of it is in this repository.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.soundcard import NAME

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / ".venv/reference"
PACKAGES = ("acoupi==0.8.0", "redis>=6.1,<7", "packaging")
"""It, what it needs to speak with Redis, and what kombu forgets to ask for."""
WORKERS = ("recording", "default")
PATIENCE = 60.0


def install() -> str | None:
    """Install it, once; why that cannot be done here, or None."""
    if (PLACE / "done").exists():
        return None
    headers = PLACE / "headers"
    try:
        _run(sys.executable, "-m", "venv", "--clear", str(PLACE))
        # PyAudio has no wheels: it is built against PortAudio's header, which need not be installed for that.
        headers.mkdir()
        _run("apt-get", "download", "portaudio19-dev", cwd=headers)
        _run("dpkg", "-x", *(str(each) for each in headers.glob("*.deb")), str(headers))
        library = next(Path("/usr/lib").glob("*/libportaudio.so.2"))
        (headers / "libportaudio.so").symlink_to(library)
        flags = {"CFLAGS": f"-I{headers}/usr/include", "LDFLAGS": f"-L{headers}"}
        _run(str(PLACE / "bin/python"), "-m", "pip", "install", "--quiet", *PACKAGES, env={**os.environ, **flags})
    except (OSError, StopIteration, subprocess.CalledProcessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        return f"it cannot be installed here: {str(said).strip().splitlines()[-1:]}"
    (PLACE / "done").touch()
    return None


@contextlib.contextmanager
def running(root: Path, environment: Mapping[str, str]) -> Iterator[tuple[dict[str, int], float]]:
    """Run Redis and it, with its own scripts; its processes, and the seconds until its workers were ready.

    Raises:
        SystemExit: If it does not start.
    """
    home, socket = root / ".acoupi", root / "redis.sock"
    # Its deployments go through systemd's user units: here nothing does, and the units' scripts are run by hand.
    stand_in = root / "bin/systemctl"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text("#!/bin/sh\nexit 0\n")
    stand_in.chmod(0o755)
    # As root, Celery refuses pickle without C_FORCE_ROOT.
    path = f"{stand_in.parent}:{PLACE}/bin:{os.environ['PATH']}"
    environ = {**environment, "HOME": str(root), "PATH": path, "USER": "root", "C_FORCE_ROOT": "1"}
    url = f"redis+socket://{socket}"
    words = {
        "microphone.device_name": NAME,
        "microphone.samplerate": "48000",
        "microphone.audio_channels": "1",
        "recording.duration": "3",
        "recording.interval": "10",
        "recording.schedule_start": "00:00:00",
        "recording.schedule_end": "23:59:59",
        "paths.tmp_audio": str(root / "tmp"),
        "paths.recordings": str(root / "recordings"),
        "paths.db_metadata": str(root / "metadata.db"),
        "broker_url": url,
        "result_backend": url,
    }
    arguments = [word for name, value in words.items() for word in (f"--{name}", value)]
    for name in ("tmp", "recordings"):
        (root / name).mkdir()
    acoupi = str(PLACE / "bin/acoupi")
    redis = ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(root)]
    with contextlib.ExitStack() as stack:
        server = subprocess.Popen(redis, stdout=subprocess.DEVNULL)
        stack.callback(server.wait)
        stack.callback(server.terminate)
        try:
            _run(acoupi, "setup", "--program", "acoupi.programs.default", "--no-prompt", *arguments, env=environ)
            _run(acoupi, "deployment", "start", "--name", "bench", "--latitude", "0", "--longitude", "0", env=environ)
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"reference: {error.cmd[1:3]}: {error.stdout}{error.stderr}") from error
        for name in ("run", "log"):
            (home / name).mkdir(exist_ok=True)
        begun = time.monotonic()
        beat = subprocess.Popen(
            [home / "bin/acoupi-beat.sh"], env=environ, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        stack.callback(beat.wait)
        stack.callback(_terminate, home / "run/beat.pid")
        for name in WORKERS:
            stack.callback(_terminate, home / f"run/{name}.pid")
        subprocess.run([home / "bin/acoupi-workers-start.sh"], env=environ, cwd=home, check=True, capture_output=True)
        while not all(" ready." in _log(home, name) for name in WORKERS):
            if time.monotonic() - begun > PATIENCE:
                raise SystemExit(f"reference: its workers are not ready: {_log(home, 'recording')[-2000:]}")
            time.sleep(0.01)
        ready = time.monotonic() - begun
        pids = {name: int((home / f"run/{name}.pid").read_text()) for name in (*WORKERS, "beat")}
        yield {"redis": server.pid, **pids}, ready


def recordings(root: Path) -> int:
    """How many it has made, filed or not."""
    return sum(1 for name in ("tmp", "recordings") for _ in (root / name).rglob("*.wav"))


def _log(home: Path, name: str) -> str:
    return "".join(path.read_text(errors="replace") for path in (home / "log").glob(f"{name}*.log"))


def _terminate(pid_file: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        os.kill(pid, 15)
        until = time.monotonic() + PATIENCE
        while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
            time.sleep(0.05)


def _run(*words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
    subprocess.run(words, cwd=cwd, env=env, check=True, capture_output=True, text=True)
