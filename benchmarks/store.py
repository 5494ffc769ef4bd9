"""What the store costs, beside bare SQLite with the same settings on the same disk: `benchmarks/store.py [FOLDER]`.

Each figure is the median of several rounds; the bare one is measured in turns with ours: a busy machine slows both.
"""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from acoupi_runtime.clock import SystemClock
from acoupi_runtime.components.saving import DateFileManager
from acoupi_runtime.configuration import BasicConfig, MessagingConfig
from acoupi_runtime.data import (
    BoundingBox,
    Capture,
    Deployment,
    Detection,
    Message,
    ModelOutput,
    PredictedTag,
    Recording,
    Response,
    ResponseStatus,
    Tag,
)
from acoupi_runtime.home import Home
from acoupi_runtime.store import Store
from acoupi_runtime.tasks.pipeline import Pipeline
from acoupi_runtime.tasks.work import Work

ROUNDS = 5
PLACE = Deployment(name="bench", latitude=51.5, longitude=-0.1)


def described(folder: Path, number: int) -> list[tuple[Recording, Capture]]:
    boot = SystemClock().boot_id
    capture = Capture(frames=144_000, stream="s", first_frame=0, boot_id=boot, boottime=1.0, clock_synced=True)
    made = []
    for _ in range(number):
        identity = uuid.uuid4()
        path = folder / f"{identity}.wav"
        recording = Recording(id=identity, duration=3, samplerate=48_000, deployment=PLACE, path=path)
        made.append((recording, capture))
    return made


def heard(recording: Recording) -> ModelOutput:
    tags = tuple(PredictedTag(tag=Tag(key="species", value=str(one)), confidence_score=0.5) for one in range(5))
    boxes = (BoundingBox.from_coordinates(one / 2, 1000, one / 2 + 0.25, 2000) for one in range(5))
    detections = tuple(Detection(location=box, detection_score=0.5, tags=tags) for box in boxes)
    return ModelOutput(name_model="model", recording=recording, detections=detections)


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def both(action: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and on a processor: on a busy machine, the first says more of the others than of us."""
    began = time.process_time()
    took = seconds(action)
    return took, time.process_time() - began


def rate(number: int, spent: list[tuple[float, float]]) -> str:
    """How many a second, in the median of several rounds."""
    clock, processor = (number / statistics.median(column) for column in zip(*spent, strict=True))
    return f"{clock:,.0f} /s ({processor:,.0f} /s of processor time)"


def bare_database(path: Path) -> sqlite3.Connection:
    bare = sqlite3.connect(path, isolation_level=None)
    bare.executescript(
        "PRAGMA page_size=1024; PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"
        "CREATE TABLE recording (id INTEGER PRIMARY KEY, content TEXT)"
    )
    return bare


def single_commits(store: Store, bare: sqlite3.Connection, folder: Path) -> tuple[float, float]:
    ours, theirs = [], []
    for recording, capture in described(folder, 300):
        ours.append(seconds(lambda r=recording, c=capture: store.add_recording(r, c)))

        def commit() -> None:
            bare.execute("BEGIN IMMEDIATE")
            bare.execute("INSERT INTO recording (content) VALUES (?)", ("x" * 400,))
            bare.execute("COMMIT")

        theirs.append(seconds(commit))
    return statistics.median(ours), statistics.median(theirs)


def file_management(folder: Path, number: int = 10_000) -> tuple[float, float]:
    """Seconds to decide on and file recordings, and to only rename each of them and sync both folders."""
    recordings = folder / "recordings"
    spool = recordings / ".spool"
    spool.mkdir(parents=True)
    paths = {"recordings": str(recordings), "db_metadata": str(folder / "managed.db")}
    config = BasicConfig(paths=paths)
    work = Work(config, Home(folder), Pipeline(manager=DateFileManager(recordings)))
    made = described(spool, number)
    for recording, _ in made:
        recording.path.write_bytes(b"")
    work.store.add_recordings(made)

    def manage() -> None:
        while work.store.backlog():
            work.process_backlog()
        work.rescan()

    ours = seconds(manage)
    assert work.store.counters()["kept"] == number
    work.close()
    source, target = folder / "source", folder / "target"
    source.mkdir()
    target.mkdir()
    sample = number // 20
    for one in range(sample):
        (source / str(one)).write_bytes(b"")

    def minimum() -> None:
        for one in range(sample):
            (source / str(one)).rename(target / str(one))
            for place in (target, source):
                descriptor = os.open(place, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)

    return ours, seconds(minimum) * number / sample


class Sink:
    name = "sink"

    def send_message(self, message: Message) -> Response:
        return Response(status=ResponseStatus.SUCCESS, message=message)


BACKLOG = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1])))
from benchmarks.store import drain_backlog
drain_backlog(Path(sys.argv[2]), int(sys.argv[3]))
"""


def drain_backlog(folder: Path, number: int) -> None:
    """Print how much the peak memory of this process grows while a backlog is worked off, and how long it takes."""
    paths = {"recordings": str(folder / "r"), "db_metadata": str(folder / "outbox.db")}
    pipeline = Pipeline(manager=DateFileManager(folder), messengers=(Sink(),))
    work = Work(
        BasicConfig(paths=paths), Home(folder), pipeline, messaging=MessagingConfig(message_send_interval=0.001)
    )
    content = heard(described(folder, 1)[0][0]).model_dump_json()

    def put(count: int) -> None:
        while count:
            step = min(count, 1000)
            work.store.put_messages([Message(content=content) for _ in range(step)], ("sink",))
            count -= step

    def work_off() -> None:
        while work.store.outbox():
            work.send_messages()

    put(200)
    work_off()  # what is needed once
    put(number)
    before = resident()
    spent = seconds(work_off)
    print(resident() - before, spent)


def resident() -> int:
    """The peak of this process's memory, in kB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


def figures(folder: Path) -> Iterator[tuple[str, str, str]]:
    store = Store.open(folder / "store.db")
    bare = bare_database(folder / "bare.db")
    ratios = [single_commits(store, bare, folder) for _ in range(ROUNDS)]
    ours, theirs = (statistics.median(column) for column in zip(*ratios, strict=True))
    ratio = statistics.median(one / other for one, other in ratios)
    yield (
        "a recording, one durable commit",
        f"{ours * 1e6:.0f} µs",
        f"{ratio:.2f} x bare ({theirs * 1e6:.0f} µs; <= 1.3)",
    )

    spent = []
    for _ in range(ROUNDS):
        made = described(folder, 5000)
        spent.append(both(lambda made=made: store.add_recordings(made)))
    yield "recordings, in batches", rate(5000, spent), ">= 20,000"

    spent = []
    for _ in range(ROUNDS):
        outputs = [heard(recording) for recording, _ in described(folder, 1000)]
        store.add_recordings([(output.recording, described(folder, 1)[0][1]) for output in outputs])
        spent.append(both(lambda outputs=outputs: store.add_model_outputs(outputs)))
    yield "model outputs (5 x 5), in batches", rate(1000, spent), ">= 5,000"
    store.close()
    bare.close()

    rounds = []
    for number in range(3):
        place = folder / f"managed-{number}"
        place.mkdir()
        rounds.append(file_management(place))
    ours, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(one / other for one, other in rounds)
    yield "management of 10,000 recordings", f"{ours:.1f} s", f"{ratio:.2f} x their fsyncs ({theirs:.1f} s; <= 1.3)"

    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", BACKLOG, root, folder, "50000"], capture_output=True, text=True, check=True, cwd=root
    )
    grown, took = done.stdout.split()
    yield "backlog of 50,000 messages", f"+{int(grown) / 1024:.1f} MiB", f"< 10 MB, in {float(took):.1f} s"


def main() -> None:
    base = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    folder = Path(tempfile.mkdtemp(prefix="store-bench-", dir=base))
    cores = os.cpu_count()
    print(
        f"{datetime.now(UTC):%Y-%m-%d} {platform.machine()} {cores} cores, Python {platform.python_version()}, ", end=""
    )
    print(f"SQLite {sqlite3.sqlite_version}, {folder}, load {os.getloadavg()[0]:.1f}")
    try:
        for what, figure, beside in figures(folder):
            print(f"| {what} | {figure} | {beside} |", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
