"""report: what a person, or a program behind a pipe, reads. Touches the terminal only; the one importer of rich.

On a terminal what is under way stands at the bottom and goes when it is done; behind a pipe each line is written once,
complete, and never wrapped. Results go to stdout, errors to stderr.
"""

from __future__ import annotations

import json
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from acoupi_fleet.doctor import Examination, size
from acoupi_fleet.errors import EXIT_INTERRUPTED, FleetError, UsageError
from acoupi_fleet.provision import Event, Note, Result
from acoupi_fleet.status import Look

STYLES = {
    "ok": "green",
    "changed": "yellow",
    "would change": "yellow",
    "restarted": "green",
    "skipped": "bright_black",
    "unreachable": "red",
    "failed": "red",
    "warning": "magenta",
    "well": "green",
    "problem": "red",
}
WORD_WIDTH = max(map(len, STYLES))
NARROWEST = 20
CONNECTING = "connecting"
TURNING = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
MOST_UNDER_WAY = 8
"""Hosts that are shown while they are worked on; the others are counted."""
FEW_CHANGES = 3
FRAME_SECONDS = 0.125
DULL = ("RELEASE", "CLOCK", "BACKLOG")
"""Columns of `status` that can go where the terminal is narrow and all sensors have the same in them."""
LOSSES = {
    "lost_seconds": "s of sound lost",
    "overflows": "overflows",
    "quarantined": "quarantined",
    "unreadable": "unreadable",
    "not_analysed": "not analysed",
    "messages_dropped": "messages dropped",
    "deleted_not_uploaded": "deleted unsent",
}
"""Counters that a person has to know of, and in which words they follow their number."""
FAINTEST = -150.0
"""dBFS; 24 bits reach down to -144, and below is a file of zeros."""
MINUTE, HOUR, DAY = 60, 3600, 86_400


class Report:
    """Everything that is shown in one run; any thread may call it."""

    def __init__(self, *, verbose: bool = False) -> None:
        self.verbose = verbose
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # a terminal that knows no `°` still gets its lines
        options: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False, "soft_wrap": True}
        self._out = Console(**options)
        self._err = Console(stderr=True, **options)
        self._drawing = threading.RLock()

    def error(self, error: FleetError | str) -> None:
        """What is wrong, each line of it marked."""
        for line in str(error).splitlines():
            self._err.print(Text.assemble(("error", "bold red"), f": {line}"))

    def interrupted(self) -> None:
        """Ctrl-C, in one line."""
        self._err.print(
            "interrupted: what a sensor had begun it sees through by itself; run the same again to see where it stands"
        )

    def line(self, text: str) -> None:
        """Something to read."""
        self._out.print(Text(text))

    def heading(self, text: str) -> None:
        """What comes next."""
        self._out.print()
        self._out.print(Text(text, "bold"))

    def command(self, text: str) -> None:
        """What is run now, as a person would type it."""
        self._out.print(Text.assemble(("$ ", "bright_black"), (text, "cyan")))

    def json(self, value: Any) -> None:
        """For a program."""
        self._out.print(Text(json.dumps(value, indent=2, default=str)))

    # --- provision, restart, check: lines as they come, then the recap ---

    @contextmanager
    def waiting(self, hosts: Sequence[str]) -> Iterator[Callable[[str], None]]:
        """Show who is being asked; the function is called with each host that has answered."""
        board = _Board(hosts)
        with self._live(board):
            yield board.finish

    @contextmanager
    def progress(
        self, hosts: Sequence[str], *, done_word: str = "changed", checking: bool = False
    ) -> Iterator[Callable[[Event], None]]:
        """Show events while they happen; any thread may call the function that takes them."""
        word = "would change" if checking else done_word
        width = max(map(cell_len, hosts), default=0)
        board = _Board(hosts)

        def observe(event: Event) -> None:
            with self._drawing:
                if isinstance(event, Note):
                    board.note(event)
                    if event.kind == "warning":
                        self._print(_line("warning", event.host, width), event.text)
                    elif self.verbose and event.percent is None:  # steps, not how far each has come
                        self._print(_line("", event.host, width), event.text)
                else:
                    board.finish(event.host)
                    self._result(event, word, width)

        with self._live(board):
            yield observe

    @contextmanager
    def _live(self, board: _Board) -> Iterator[None]:
        # FORCE_COLOR, which many a CI sets, makes a pipe a terminal for rich; what moves the cursor breaks JSON there.
        if not (self._out.is_terminal and sys.stdout.isatty()):
            yield
            return
        done = threading.Event()
        # rich's own thread draws while a line is printed, and one of the two may then wipe the other's line.
        with Live(board, console=self._out, transient=True, auto_refresh=False) as live:

            def draw() -> None:
                while not done.wait(FRAME_SECONDS):
                    with self._drawing:
                        live.refresh()

            artist = threading.Thread(target=draw, name="board", daemon=True)
            artist.start()
            try:
                yield
            finally:
                done.set()
                artist.join()

    def _result(self, result: Result, done_word: str, width: int) -> None:
        word = done_word if result.status == "changed" else result.status
        line, seconds = _line(word, result.host, width), f"{result.seconds:.1f} s"
        if result.error is not None:
            self._print(line, result.error)
        elif result.status != "changed":
            self._print(line, f"nothing to do ({seconds})")
        elif len(result.changes) == 1:
            self._print(line, f"{result.changes[0]} ({seconds})")
        elif not self.verbose and done_word == "changed" and len(result.changes) > FEW_CHANGES:
            self._print(line, f"{len(result.changes)} changes ({seconds}; -v lists them)")
        else:
            self._print(line, f"{len(result.changes)} changes ({seconds})")
            for change in result.changes:
                self._print(_line("", "", width), f"- {change}")

    def _print(self, head: Text, text: str, style: str = "") -> None:
        """A line; a terminal that is too narrow for it gets the rest below, behind the head."""
        if not self._out.is_terminal:
            head.append(text, style).rstrip()
            self._out.print(head)
            return
        indent = cell_len(head.plain)
        pieces = textwrap.wrap(text, max(self._out.width - indent, NARROWEST), break_on_hyphens=False) or [""]
        for number, piece in enumerate(pieces):
            self._out.print((head if number == 0 else Text(" " * indent)).append(piece, style))

    def recap(self, results: Sequence[Result]) -> None:
        """One line a host, in the inventory's order; `changed` counts changes, the other words are 0 or 1."""
        if any(result.exit_code == EXIT_INTERRUPTED for result in results):
            self.interrupted()
        width = max((cell_len(result.host) for result in results), default=0)
        self._out.print()
        for result in results:
            counts = {
                "ok": int(result.status in {"ok", "changed"}),
                "changed": len(result.changes),
                "unreachable": int(result.status == "unreachable"),
                "failed": int(result.status == "failed"),
                "skipped": int(result.status == "skipped"),
            }
            text = Text().append(_pad(result.host, width), STYLES[result.status]).append(" :")
            for word, count in counts.items():
                text.append(f" {word}={count}".ljust(len(word) + 4), STYLES[word] if count else "bright_black")
            text.rstrip()
            self._out.print(text)

    def diff(self, host: str, lines: Sequence[str]) -> None:
        """The text of what differs on a host, as `diff -u` shows it."""
        styles = {"+": "green", "-": "red", "@": "cyan"}
        self._out.print(Text(f"--- {host} ---", "bold"))
        for line in lines:
            self._out.print(Text(line, styles.get(line[:1], "")))

    # --- status ---

    def looks(self, looks: Sequence[Look]) -> None:
        """One line a sensor, and below it a count when there are several."""
        heads = ["SENSOR", "STATE", "RELEASE", "LAST RECORDING", "LEVEL", "FREE", "CLOCK", "BACKLOG", "NOTE"]
        rows = [[Text(head, "bold") for head in heads], *map(_look_row, looks)]
        if self._out.is_terminal:
            rows = _narrowed(rows, self._out.width)
            heads = [head.plain for head in rows[0]]
        known = [row for row in rows if len(row) == len(heads)]
        widths = [max(cell_len(row[column].plain) for row in known) for column in range(len(heads) - 1)]
        widths[:2] = [max(cell_len(row[column].plain) for row in rows) for column in (0, 1)]
        for row in rows:
            line = Text()
            for cell, width in zip(row[:-1], widths, strict=False):
                line.append_text(cell).append(" " * (width - cell_len(cell.plain) + 2))
            note = row[-1]
            if self._out.is_terminal and len(row) == len(heads) and not self._fits(line, note):
                line.rstrip()
                self._out.print(line)
                line = Text(" " * (widths[0] + 2))
                if note.plain == heads[-1]:
                    continue
            self._print(line, note.plain, str(note.style))
        if len(looks) > 1:
            counts = Counter(look.state for look in looks)
            self._out.print(
                Text(f"{len(looks)} sensors: " + ", ".join(f"{n} {state}" for state, n in counts.most_common()))
            )

    def _fits(self, line: Text, note: Text) -> bool:
        return cell_len(line.plain.rstrip() if not note.plain else line.plain + note.plain) <= self._out.width

    def looks_json(self, looks: Sequence[Look]) -> None:
        """The same for a program: a list of objects, the units in the names' documentation."""
        self.json([asdict(look) | {"health": look.health} for look in looks])

    # --- doctor ---

    def examinations(self, examinations: Sequence[Examination]) -> None:
        """For each device what was found, one line each, with a mark for what needs a person."""
        for number, examination in enumerate(examinations):
            if number:
                self._out.print()
            self._out.print(Text(examination.host, "bold"))
            width = max(cell_len(finding.subject) for finding in examination.findings)
            for finding in examination.findings:
                word = "ok" if finding.level == "well" else finding.level
                line = Text("  ").append(word.ljust(len("problem")), STYLES[finding.level])
                self._print(line.append(f"  {_pad(finding.subject, width)}  "), finding.text)

    def examinations_json(self, examinations: Sequence[Examination]) -> None:
        """The same for a program."""
        self.json([asdict(examination) | {"level": examination.level} for examination in examinations])


class Talk:
    """Questions and answers on stdin and stdout; the answers may come from a file."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def ask(self, question: str, default: str = "") -> str:
        """One answer in one line."""
        print(f"{question}{f' [{default}]' if default else ''}: ", end="", flush=True)  # noqa: T201 - input() writes to stderr at times
        answer = sys.stdin.readline()
        if not sys.stdin.isatty():
            print(answer.strip())  # noqa: T201 - nobody has typed it
        if not answer:
            raise UsageError("the answers ended before the last question; nothing was written")
        return answer.strip()

    def tell(self, text: str) -> None:
        """Something to know before the next question."""
        self._report.line(text)


class _Board:
    """What is under way, drawn anew many times a second."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._under_way = {host: Note(host, "progress", CONNECTING) for host in hosts}
        self._began = time.monotonic()
        self._guard = threading.Lock()
        self._total = len(hosts)

    def note(self, note: Note) -> None:
        """A host has come to something."""
        with self._guard:
            if note.host in self._under_way and note.kind != "warning":
                self._under_way[note.host] = note

    def finish(self, host: str) -> None:
        """A host is done."""
        with self._guard:
            self._under_way.pop(host, None)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._guard:
            notes = sorted(self._under_way.values(), key=lambda note: note.text == CONNECTING)
        width = max((cell_len(note.host) for note in notes), default=0)
        turning = (TURNING[int(console.get_time() / FRAME_SECONDS) % len(TURNING)], "cyan")
        for note in notes[:MOST_UNDER_WAY]:
            percent = "" if note.percent is None else f" {note.percent:.0f} %"
            line = Text.assemble(
                turning, " ", (_pad(note.host, width), "bold"), (f"  {note.text}{percent}", "bright_black")
            )
            line.truncate(options.max_width, overflow="ellipsis")
            yield line
        others = f", {len(notes) - MOST_UNDER_WAY} more under way" if len(notes) > MOST_UNDER_WAY else ""
        elapsed = time.monotonic() - self._began
        yield Text(f"{self._total - len(notes)} of {self._total} done, {elapsed:.0f} s{others}", "bright_black")


def _line(word: str, host: str, width: int) -> Text:
    return Text().append(word.ljust(WORD_WIDTH), STYLES.get(word, "")).append(f"  {_pad(host, width)}  ", "bold")


def _pad(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def _look_row(look: Look) -> list[Text]:
    style = STYLES["ok" if look.health == "well" else look.health]
    head = [Text(look.host), Text(look.state, style)]
    if look.release is None:
        return [*head, Text(look.detail)]
    notes = [look.detail, "unfinished recordings are in memory only" if look.memory_mode else ""]
    notes.append("nobody sets its clock" if look.clock_synced is False else "")
    notes += look.troubles
    losses = [f"{look.counters[name]} {words}" for name, words in LOSSES.items() if look.counters.get(name)]
    notes.append(f"so far {', '.join(losses)}" if losses else "")
    return [
        *head,
        Text(look.release[:12]),
        Text(_last(look)),
        Text("-" if look.last_level is None else _level(look.last_level)),
        Text(_free(look)),
        _clock(look.clock_offset),
        Text("-" if look.backlog is None else str(look.backlog)),
        Text("; ".join(filter(None, notes)), "" if look.health == "well" else style),
    ]


def _narrowed(rows: list[list[Text]], width: int) -> list[list[Text]]:
    """A table that is too wide for the terminal, without those columns that say the same of every sensor."""
    full = [row for row in rows if len(row) == len(rows[0])]
    while (
        sum(max(cell_len(cell.plain) for cell in column) + 2 for column in list(zip(*full, strict=True))[:-1]) > width
    ):
        dull = [
            number
            for number, column in enumerate(zip(*full, strict=True))
            if column[0].plain in DULL and len({cell.plain for cell in column[1:]}) == 1
        ]
        if not dull:
            break
        full = [row[: dull[0]] + row[dull[0] + 1 :] for row in full]
    shortened = iter(full)
    return [next(shortened) if len(row) == len(rows[0]) else row for row in rows]


def _last(look: Look) -> str:
    if look.last_age is None or look.last_duration is None:
        return "none"
    return f"{ago(look.last_age)}, {look.last_duration:.1f} s"


def _level(decibels: float) -> str:
    return "no sound" if decibels < FAINTEST else f"{decibels:.1f} dBFS"


def _free(look: Look) -> str:
    if look.disk_free is None:
        return "-"
    days = look.days_left
    return size(look.disk_free) + ("" if days is None else f", {days:.0f} days" if days >= 1 else ", less than a day")


def _clock(offset: float | None) -> Text:
    if offset is None:
        return Text("-")
    return Text("in step") if abs(offset) < 1 else Text(f"{offset:+.0f} s", STYLES["warning"])


def ago(seconds: float) -> str:
    """How long ago, in the unit in which a person thinks."""
    if seconds < 0:
        return f"{-seconds:.0f} s ahead"
    for unit, length in (("d", DAY), ("h", HOUR), ("min", MINUTE)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
