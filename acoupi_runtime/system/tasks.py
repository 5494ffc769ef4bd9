"""tasks: which tasks a program has, and running one now where it belongs: in its worker. Asks Redis; runs nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from acoupi_runtime.errors import AcoupiError
from acoupi_runtime.home import Home
from acoupi_runtime.system import files
from acoupi_runtime.system.config import value_of


class TaskError(AcoupiError):
    """A task could not be run, or failed."""


def list_tasks(home: Home) -> list[dict[str, Any]]:
    """Name, queue and schedule of each task of the home's program."""
    from acoupi_runtime.system import apps

    program = files.load_program(home)
    return [
        {
            "name": task.name,
            "queue": task.queue or apps.DEFAULT_QUEUE,
            "schedule": task.schedule if isinstance(task.schedule, int | float | None) else str(task.schedule),
        }
        for task in program.tasks.values()
    ]


def run_task(home: Home, name: str, arguments: Sequence[str], timeout: float | None = None) -> Any:
    """Have a worker run a task, and wait for its result.

    Args:
        home: ACOUPI_HOME.
        name: The task.
        arguments: Each JSON, or else text as it is.
        timeout: Seconds to wait; the hard limit of tasks, and some for the way, when left out.

    Raises:
        TaskError: If there is no such task, it failed, or nobody answered in time.
    """
    import celery.exceptions
    import redis

    from acoupi_runtime.system import apps

    program = files.load_program(home)
    task = program.tasks.get(name)
    if task is None:
        raise TaskError(
            f"task {name!r}: the program has none of this name; there are {', '.join(program.tasks) or 'none'}"
        )
    app = apps.app_of(program)
    limit = timeout or files.celery_config(home).task_time_limit + 10
    queue = task.queue or apps.DEFAULT_QUEUE
    try:
        redis.Redis(unix_socket_path=str(home.redis_socket), socket_timeout=apps.SOCKET_TIMEOUT).ping()
        sent = app.send_task(
            name, args=[value_of(text) for text in arguments], queue=queue, ignore_result=False, expires=limit
        )
        return _result(sent, name, queue, limit)
    except (celery.exceptions.OperationalError, redis.RedisError, OSError) as error:
        raise TaskError(f"task {name!r}: Redis does not answer at {home.redis_socket}; start it") from error
    finally:
        app.close()


def _result(sent: Any, name: str, queue: str, limit: float) -> Any:
    # Looking is cheap on a local socket; waiting would subscribe, with a thread and a connection of its own.
    deadline = time.monotonic() + limit
    while not sent.ready():
        if time.monotonic() > deadline:
            raise TaskError(f"task {name!r}: no worker answered from queue {queue!r} within {limit:g} s; see `status`")
        time.sleep(0.05)
    if sent.failed():
        raise TaskError(f"task {name!r}: {type(sent.result).__name__}: {sent.result}")
    return sent.result
