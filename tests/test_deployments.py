"""The deployment that new recordings belong to, while the store is there, away, and back again."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

import pytest

from acoupi_runtime.configuration import DeploymentConfig
from acoupi_runtime.data import Deployment
from acoupi_runtime.store import Store
from acoupi_runtime.system.deployments import Current, bring_together, end

OAK, ELM = DeploymentConfig(name="Oak"), DeploymentConfig(name="Elm")


class Program:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_start(self, deployment: Deployment) -> None:
        self.told.append(f"+{deployment.name}")

    def on_end(self, deployment: Deployment) -> None:
        self.told.append(f"-{deployment.name}")


class Rig:
    """A store whose card can be taken away."""

    def __init__(self, folder: Path) -> None:
        self.card, self.aside = folder / "card", folder / "aside"
        self.store = Store.at(self.card / "store.db")
        self.program = Program()

    def away(self) -> None:
        self.store.close()
        if self.card.exists():
            self.card.rename(self.aside)
        self.card.touch()

    def back(self) -> None:
        self.card.unlink()
        if self.aside.exists():
            self.aside.rename(self.card)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_deployment_begins_when_the_store_is_back_and_is_that_of_what_was_recorded_meanwhile(rig: Rig) -> None:
    rig.away()
    current = Current(rig.store, OAK, rig.program)
    current.begin()
    assert current.running(), "nobody has stopped it"
    meanwhile = current()
    rig.back()
    assert current.running()
    assert current() == meanwhile
    stored = rig.store.current_deployment()
    assert stored is not None
    assert (stored.id, rig.program.told) == (meanwhile.id, ["+Oak"])


@pytest.mark.parametrize("name", ["Oak", "Elm"])
def test_one_that_the_store_had_ends_where_recordings_were_made_without_it(rig: Rig, name: str) -> None:
    bring_together(rig.store, DeploymentConfig(name=name), rig.program)
    rig.away()
    current = Current(rig.store, OAK, rig.program)
    current.begin()
    meanwhile = current()
    rig.back()
    assert current.running()
    assert current().id == meanwhile.id
    assert rig.program.told == [f"+{name}", f"-{name}", "+Oak"]


def test_the_same_deployment_goes_on_where_nothing_was_recorded_meanwhile(rig: Rig) -> None:
    before = bring_together(rig.store, OAK, rig.program)
    rig.away()
    current = Current(rig.store, OAK, rig.program)
    current.begin()
    rig.back()
    assert current.running()
    assert current() == before
    assert rig.program.told == ["+Oak"]


@pytest.mark.parametrize("recorded", [True, False])
def test_what_was_stopped_by_hand_is_stopped_when_the_store_says_so_again(rig: Rig, recorded: bool) -> None:  # noqa: FBT001
    bring_together(rig.store, OAK, rig.program)
    end(rig.store, rig.program)
    rig.away()
    current = Current(rig.store, OAK, rig.program)
    current.begin()
    if recorded:
        current()
    rig.back()
    assert not current.running()
    assert not current.running()
    assert rig.program.told == ["+Oak", "-Oak"] + ["+Oak", "-Oak"] * recorded


def test_the_recorder_does_not_wait_for_a_store_that_another_process_holds(rig: Rig) -> None:
    current = Current(rig.store, OAK, rig.program)
    current.begin()
    seen = current()
    rig.store.close()
    with (rig.card / "store.db.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        began = time.monotonic()
        assert current() == seen
        assert time.monotonic() - began < 1


def test_one_that_is_started_by_hand_is_that_of_the_next_recording(rig: Rig) -> None:
    current = Current(rig.store, OAK, rig.program)
    current.begin()
    assert current().name == "Oak"
    end(rig.store, rig.program)
    assert not current.running()
    assert current().name == "Oak", "a recording that is under way is still of the one that has ended"
    bring_together(rig.store, ELM, rig.program)
    assert current.running()
    assert current().name == "Elm"
