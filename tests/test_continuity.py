"""Every frame once, in order, in all files, while processing is killed; the long run is benchmarks/continuity.py.

The microphone of a real sensor hears a count that says of each frame which one it is. Silence of the rig's own player
is told from lost sound by it: the count stops at the one, and jumps at the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.continuity import LOWS, PERIOD, Break, Listener, count, number, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Fleet, MakeSensor
    from tests.sensors import Sensor

SECONDS = 30
KILL_EVERY = 6.0
ROUND = 2 * LOWS


@pytest.fixture(scope="module")
def sensor(make_sensor: MakeSensor) -> Sensor:
    return make_sensor()


@pytest.mark.parametrize("rate", [48_000, 384_000])
def test_every_frame_is_recorded_once_and_in_order_while_processing_is_killed(
    sensor: Sensor, fleet: Fleet, tmp_path: Path, rate: int
) -> None:
    made = run(sensor, fleet, tmp_path, rate, SECONDS, KILL_EVERY)
    print(made, made.heard.counted, made.heard.starved)
    assert made.heard.breaks == []
    assert (made.apart, made.overflows, made.others) == (0, 0, 0)
    assert made.files >= 2
    assert made.frames == made.heard.counted + made.heard.starved >= SECONDS * rate
    assert made.heard.counted > made.frames / 2, "the rig's player was late most of the time: this shows little"
    assert made.kills >= 1
    assert made.outputs >= 1
    assert made.restarts[1] == 0
    assert made.restarts[0] >= 1


@pytest.mark.parametrize("first", [0, 1, ROUND - 3, ROUND - 2, ROUND - 1, ROUND, 7 * ROUND + 12_345, PERIOD - 1])
def test_each_frame_of_the_count_has_its_own_number(first: int) -> None:
    assert number(count(first, 3)) == first


def test_the_listener_knows_lost_repeated_and_silenced_frames_from_a_late_player() -> None:
    silence = np.zeros(500, np.int16)
    late, lost, again, silenced = Listener(), Listener(), Listener(), Listener()
    for part in (silence, count(ROUND - 1000, 2000), silence, count(ROUND + 1000, 3000), count(ROUND + 4000, 1)):
        late.hear(part)
    assert (late.breaks, late.counted, late.starved) == ([], 5001, 1000)
    lost.hear(np.concatenate([count(10, 1000), count(1011, 1000)]))
    assert lost.breaks == [Break(1000, 1010, 1011)]
    again.hear(count(10, 1000))
    again.hear(count(1009, 1000))
    assert again.breaks == [Break(1000, 1010, 1009)]
    silenced.hear(np.concatenate([count(10, 1000), silence, count(1510, 1000)]))
    assert silenced.breaks == [Break(1500, 1010, 1510)]
