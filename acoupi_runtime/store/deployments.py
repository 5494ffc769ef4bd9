"""deployments: where the sensor stands and stood. Writes rows only."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from uuid import UUID

from acoupi_runtime.data import Deployment
from acoupi_runtime.errors import DeploymentError, StoreError
from acoupi_runtime.store.rows import DEPLOYMENT, deployment_from, micros
from acoupi_runtime.store.shelf import Shelf


class Deployments(Shelf):
    """The shelf of deployments."""

    def current_deployment(self) -> Deployment | None:
        """The deployment that has not ended, or None."""
        with self._database.reading() as connection:
            row = connection.execute(
                f"SELECT {DEPLOYMENT} FROM deployment d WHERE d.ended_on IS NULL ORDER BY d.seq DESC"  # noqa: S608 - columns
            ).fetchone()
        return None if row is None else deployment_from(row)

    def last_deployment(self) -> Deployment | None:
        """The deployment that was started last, whether or not it has ended."""
        with self._database.reading() as connection:
            row = connection.execute(
                f"SELECT {DEPLOYMENT} FROM deployment d ORDER BY d.seq DESC"  # noqa: S608 - columns
            ).fetchone()
        return None if row is None else deployment_from(row)

    def start_deployment(self, deployment: Deployment) -> None:
        """Store a deployment; started twice, it is there once.

        Raises:
            DeploymentError: If another one has not ended.
        """
        with self._database.writing() as connection:
            row = connection.execute(
                "SELECT name FROM deployment WHERE ended_on IS NULL AND id != ?", (deployment.id.bytes,)
            ).fetchone()
            if row:
                raise DeploymentError(f"deployment {row[0]!r} has not ended; end it first")
            deployment_in(connection, deployment, {})

    def end_deployment(self, deployment_id: UUID, ended_on: datetime) -> None:
        """End a deployment; one that has ended stays as it is.

        Raises:
            StoreError: If there is none of this id.
        """
        with self._database.writing() as connection:
            done = connection.execute(
                "UPDATE deployment SET ended_on = coalesce(ended_on, ?) WHERE id = ?",
                (micros(ended_on), deployment_id.bytes),
            )
            if not done.rowcount:
                raise StoreError(f"deployment {deployment_id}: there is none of this id; see `deployment status`")


def deployment_in(connection: sqlite3.Connection, deployment: Deployment, seen: dict[UUID, int]) -> int:
    """The row of a deployment, which is made if it is not there: a store that is rebuilt learns it from recordings."""
    seq = seen.get(deployment.id)
    if seq is None:
        key = deployment.id.bytes
        row = connection.execute("SELECT seq FROM deployment WHERE id = ?", (key,)).fetchone()
        if row is None:
            row = connection.execute(
                "INSERT INTO deployment (id, name, latitude, longitude, started_on, ended_on)"
                " VALUES (?, ?, ?, ?, ?, ?) RETURNING seq",
                (
                    key,
                    deployment.name,
                    deployment.latitude,
                    deployment.longitude,
                    micros(deployment.started_on),
                    None if deployment.ended_on is None else micros(deployment.ended_on),
                ),
            ).fetchone()
        seq = seen[deployment.id] = int(row[0])
    return seq
