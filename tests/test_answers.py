"""What a device says and nobody understands is that device's own failure: one line, and the others go on."""

from __future__ import annotations

import copy
import io
import struct
from typing import TYPE_CHECKING, Any

import pytest

from acoupi_fleet import status
from acoupi_fleet.device import facts as device
from acoupi_fleet.device import wire
from acoupi_fleet.device.call import Call
from acoupi_fleet.errors import HostError
from acoupi_fleet.facts import parse
from acoupi_fleet.remote import LinkLostError
from acoupi_fleet.together import together
from tests.test_remote import a_host, keys_in, no_agent, refusal, say_hello, way_to
from tests.test_status_verb import answer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import SshServer

__all__ = ["no_agent"]
NOT_UNDERSTOOD = "its answer is not understood; run again"


def frame(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def changed(whole: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """An answer with one of its values changed, or without it where the value is `...`."""
    made = copy.deepcopy(whole)
    *way, last = path.split(".")
    inner = made
    for key in way:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return made


@pytest.mark.parametrize(
    "text", [b"no json", b"\xff\xfe", b"[1]", b"", b"[" * 100_000], ids=["words", "bytes", "list", "empty", "deep"]
)
def test_a_frame_that_holds_no_object_ends_the_conversation(text: bytes) -> None:
    with pytest.raises(wire.LinkLostError):
        wire.unpack(io.BytesIO(frame(text)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("machine", ...),
        ("machine", "aarch64"),
        ("machine.glibc", "two"),
        ("machine.markers", {}),
        ("machine.markers.python_version", "new"),
        ("login.groups", None),
        ("free_bytes", ...),
        ("due", "yesterday"),
        ("releases", {"1-a": {"serial": 1}}),
        ("releases", []),
        ("release", {"name": "1-a"}),
        ("home", {"data": {"colour": "green"}}),
        ("units", []),
        ("states", {"acoupi.target": None}),
    ],
)
def test_facts_of_another_shape_are_not_understood(
    path: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = {"scope": "user", "packages": [], "units": [], "workers": []}
    said = device.facts(Call(asked, lambda _: None, io.BytesIO()))
    assert parse(said).bits in {32, 64}
    with pytest.raises(HostError, match=NOT_UNDERSTOOD):
        parse(changed(said, path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("release", ...),
        ("runtime", "all is well"),
        ("units", None),
        ("clock", "noon"),
        ("runtime.recorder.state", ...),
        ("runtime.recorder.level_rms", "loud"),
        ("runtime.recorder.last_recording.created_on", "yesterday"),
        ("runtime.store.backlog", ...),
        ("runtime.store.outbox", 3),
        ("runtime.disk.free", "much"),
    ],
)
def test_a_status_of_another_shape_is_not_understood(path: str, value: Any) -> None:
    with pytest.raises(HostError, match=NOT_UNDERSTOOD):
        status.judge("pond", changed(answer(), path, value), clock_offset=0.0)


def test_a_clock_that_is_none_tells_nothing() -> None:
    clock = status.Clock()
    clock.hear({"event": "clock"})
    clock.hear({"event": "clock", "clock": "noon"})
    assert clock.offset is None


def says(sshd: SshServer, greeting: str, answered: bytes) -> None:
    """Put a python3 on the device that greets, takes the agent, and answers the first question so."""
    python = sshd.home / "bin/python3"
    python.parent.mkdir()
    python.write_text(
        "#!/usr/bin/python3\nimport sys\n"
        f"print({wire.GREETING + greeting!r}, flush=True)\n"
        "sys.stdin.buffer.read(int(sys.stdin.buffer.readline()))\n"
        f"sys.stdin.buffer.read(4)\nsys.stdout.buffer.write({answered!r})\nsys.stdout.buffer.flush()\n"
        "sys.stdin.buffer.read()\n"
    )
    python.chmod(0o755)
    (sshd.home / ".bashrc").write_text("PATH=~/bin:$PATH\n")


@pytest.mark.parametrize("greeting", ["", "hello", "[]", '["3.11", "x", 64, 0]', '[[3, 11], "x", 64, 0]'])
def test_a_greeting_that_is_none_is_not_understood(greeting: str, sshd: SshServer, tmp_path: Path) -> None:
    says(sshd, greeting, b"")
    assert NOT_UNDERSTOOD in str(refusal(way_to(sshd), keys_in(tmp_path)))


@pytest.mark.parametrize("said", [b"no json", b"[]", b"{}"])
def test_an_answer_that_is_none_is_a_lost_link_of_this_host_alone(said: bytes, sshd: SshServer, tmp_path: Path) -> None:
    says(sshd, '[[3, 11, 2], "x86_64", 64, 1000]', frame(said))
    ((_, result),) = together([a_host(way_to(sshd))], 1, lambda host: say_hello(host.connection, keys_in(tmp_path)))
    assert isinstance(result, LinkLostError)
    assert "outcome unknown; run again" in str(result)
