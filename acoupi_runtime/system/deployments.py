"""deployments: which deployment the sensor is in. Compares the wanted one with the store's; writes only to the store.

The fleet, or a person, says in deployment.json where the sensor stands; the store has what is and was. The recorder
brings the two together when it starts, so that a changed name or place begins a new deployment, and the same one goes
on over restarts.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from acoupi_runtime.configuration import BasicConfig, DeploymentConfig
from acoupi_runtime.data import Deployment, now
from acoupi_runtime.errors import AcoupiError, DeploymentError, StoreError
from acoupi_runtime.home import Home
from acoupi_runtime.programs import AcoupiProgram
from acoupi_runtime.system import config, files

if TYPE_CHECKING:
    from acoupi_runtime.store import Store

logger = logging.getLogger(__name__)


class Shelf(Protocol):
    """What is asked of the store."""

    def current_deployment(self) -> Deployment | None:
        """The one that has not ended."""

    def last_deployment(self) -> Deployment | None:
        """The one that was started last."""

    def start_deployment(self, deployment: Deployment) -> None:
        """Store one."""

    def end_deployment(self, deployment_id: UUID, ended_on: datetime) -> None:
        """End one."""


class Hooks(Protocol):
    """What a program wants to know of deployments."""

    def on_start(self, deployment: Deployment) -> None:
        """One has started."""

    def on_end(self, deployment: Deployment) -> None:
        """One has ended."""


def bring_together(store: Shelf, wanted: DeploymentConfig, program: Hooks) -> Deployment | None:
    """Make the wanted deployment the current one, and return it; None if it was stopped by hand, and stays so."""
    current = store.current_deployment()
    if current is not None and _is(current, wanted):
        return current
    if current is not None:
        end(store, program)
    else:
        last = store.last_deployment()
        if last is not None and _is(last, wanted):
            return None
    return start(store, wanted, program)


def catch_up(store: Shelf, wanted: DeploymentConfig, program: Hooks, meanwhile: Deployment) -> Deployment | None:
    """As `bring_together`, where recordings were made in a deployment that the store could not be told of.

    That one is what the sensor was in, so that it takes the place of the store's, which may have the same name.
    """
    current, last = store.current_deployment(), store.last_deployment()
    if current is not None and current.id == meanwhile.id:  # its recordings were stored first
        program.on_start(meanwhile)
        return current
    if current is not None:
        end(store, program)
    store.start_deployment(meanwhile)
    program.on_start(meanwhile)
    if current is None and last is not None and _is(last, wanted):  # stopped by hand: it stays so
        end(store, program)
        return None
    return meanwhile


def start(store: Shelf, wanted: DeploymentConfig, program: Hooks) -> Deployment:
    """Start a deployment.

    Raises:
        DeploymentError: If one has not ended.
    """
    deployment = _of(wanted)
    store.start_deployment(deployment)
    program.on_start(deployment)
    return deployment


def end(store: Shelf, program: Hooks) -> Deployment:
    """End the current deployment, and return it.

    Raises:
        DeploymentError: If none is running.
    """
    current = store.current_deployment()
    if current is None:
        raise DeploymentError("no deployment is running; `acoupi-runtime deployment start` starts one")
    instant = now()
    ended = current.model_copy(update={"ended_on": instant})
    store.end_deployment(current.id, instant)
    program.on_end(ended)
    return ended


def _of(wanted: DeploymentConfig) -> Deployment:
    return Deployment(name=wanted.name, latitude=wanted.latitude, longitude=wanted.longitude)


def _is(deployment: Deployment, wanted: DeploymentConfig) -> bool:
    return (deployment.name, deployment.latitude, deployment.longitude) == (
        wanted.name,
        wanted.latitude,
        wanted.longitude,
    )


_AWAY = (AcoupiError, sqlite3.Error, OSError)
"""What says that the store cannot be asked now."""


class Current:
    """The deployment that new recordings belong to, as the recorder asks for it.

    The store may be away for a while (a full or broken card), or let us wait for a minute. That stops no recording: who
    calls `running` asks the store, every few seconds, and the last answer holds.
    """

    def __init__(self, store: Shelf, wanted: DeploymentConfig, program: Hooks) -> None:
        self._store, self._wanted, self._program = store, wanted, program
        self._last: Deployment | None = None
        self._meanwhile: Deployment | None = None
        """What recordings were said to belong to while the store said nothing yet."""
        self._begun = False
        self._beginning = threading.Lock()
        self._trouble = ""

    def begin(self) -> None:
        """Bring the wanted deployment and the store's together; where the store is away, `running` tries again."""
        with self._beginning:
            if self._begun:
                return
            try:
                if self._meanwhile is None:
                    self._last = bring_together(self._store, self._wanted, self._program)
                else:
                    self._last = catch_up(self._store, self._wanted, self._program, self._meanwhile)
            except StoreError as error:
                self._say(error)
                return
            except Exception:  # a program's own hook may raise anything
                logger.exception("the deployment %s could not be started", self._wanted.name)
            self._begun = True

    def running(self) -> bool:
        """Whether there is one; also where that cannot be told."""
        self.begin()
        if not self._begun:
            return True
        try:
            current = self._store.current_deployment()
        except _AWAY as error:
            self._say(error)
            return True
        self._last = current or self._last
        return current is not None

    def __call__(self) -> Deployment:
        """The deployment of a recording that is made now, as last seen: the recorder does not wait for the store."""
        if self._last is None:
            self._last = self._meanwhile = _of(self._wanted)
        return self._last

    def _say(self, error: Exception) -> None:
        if str(error) != self._trouble:  # asked every few seconds, and a broken card lasts for days
            self._trouble = str(error)
            logger.warning("the store does not say which deployment runs: %s", error)


def running(home: Home) -> Deployment | None:
    """The deployment that runs in a home, or None."""
    with _store_of(files.configured_program(home)) as store:
        return store.current_deployment()


def start_by_hand(home: Home, given: Mapping[str, Any]) -> Deployment:
    """Start a deployment: the configured one, or one that was just named, which is then the configured one.

    Raises:
        DeploymentError: If one has not ended.
        ConfigurationError: If a fleet manages this home and says something else.
    """
    program = files.configured_program(home)
    wanted = files.wanted_deployment(home)
    named = config.validated(DeploymentConfig, wanted.model_dump() | dict(given), "deployment")
    with _store_of(program) as store:
        current = store.current_deployment()
        if current is not None:
            raise DeploymentError(f"deployment {current.name!r} runs already; `acoupi-runtime deployment stop` ends it")
        if named != wanted:
            config.refuse_managed(home)
            config.rewrite(home, program.config, named)
        return start(store, named, program)


def stop_by_hand(home: Home) -> Deployment:
    """End the deployment that runs, until one is started again.

    Raises:
        DeploymentError: If none runs.
    """
    program = files.configured_program(home)
    with _store_of(program) as store:
        return end(store, program)


def _store_of(program: AcoupiProgram[Any]) -> closing[Store]:
    from acoupi_runtime.store import Store

    if not isinstance(program.config, BasicConfig):
        raise DeploymentError("this program does not record, so that it has no deployments")
    return closing(Store.open(files.store_path(program.config)))
