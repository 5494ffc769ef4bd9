"""apps: from a home to its program and to its Celery app. Reads the home's configuration; opens nothing.

Celery and Redis only say "look now": files and the store are the truth. So everything here is chosen for a broker that
may vanish at any time, and for a device with little memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any

from celery import Celery
from celery.schedules import BaseSchedule

from acoupi_runtime.configuration import CeleryConfig
from acoupi_runtime.errors import ConfigurationError
from acoupi_runtime.home import SOCKET_PATH_LIMIT, Home
from acoupi_runtime.programs import AcoupiProgram, ProgramTask
from acoupi_runtime.system import wire
from acoupi_runtime.system.beat import Entry
from acoupi_runtime.system.files import celery_config, load_program

SOCKET_TIMEOUT = 5.0
"""Seconds after which a Redis that hangs counts as one that is away."""
DEFAULT_QUEUE = "celery"


def get_celery_app(home: Home | None = None) -> Celery:
    """The Celery app of a home: its program's tasks, on its own Redis socket.

    Args:
        home: ACOUPI_HOME; the environment's when left out.

    Raises:
        ConfigurationError: If the home is missing or refused.
    """
    home = home or Home.from_environment()
    return app_of(load_program(home))


def app_of(program: AcoupiProgram[Any]) -> Celery:
    """The Celery app of a program that is set up."""
    config = celery_config(program.home)
    app = bare_app(program.home, config)
    for task in program.tasks.values():
        _add(app, task)
        if isinstance(task.schedule, BaseSchedule):
            task.schedule.app = app  # its time zone is this app's
    app.set_default()
    return app


def queues_of(program: AcoupiProgram[Any]) -> tuple[str, ...]:
    """All queues of a program that is set up: what a worker without queues takes."""
    names = {DEFAULT_QUEUE}
    for worker in program.get_worker_config(program.config).workers:
        names.update(worker.queues)
    for task in program.tasks.values():
        names.update(name for name in (task.queue, task.callback_queue) if name)
    return tuple(sorted(names))


def entries_of(program: AcoupiProgram[Any]) -> tuple[Entry, ...]:
    """What beat sends for a program that is set up."""
    return tuple(
        Entry(task.name, task.queue or DEFAULT_QUEUE, task.schedule)
        for task in program.tasks.values()
        if task.schedule is not None
    )


def bare_app(home: Home, config: CeleryConfig) -> Celery:
    """A Celery app without tasks: enough to send, and to ask the workers.

    Raises:
        ConfigurationError: If the socket's path is too long for the kernel.
    """
    if len(bytes(home.redis_socket)) > SOCKET_PATH_LIMIT:
        raise ConfigurationError(
            f"{home.redis_socket}: longer than the {SOCKET_PATH_LIMIT} bytes a socket may have; move ACOUPI_HOME"
        )
    wire.register()
    url = f"redis+socket://{home.redis_socket}"
    app = Celery("acoupi", set_as_current=False, broker=url, backend=url)
    app.conf.update(
        # JSON only: with pickle, whoever reaches the broker runs code.
        accept_content=["json"],
        result_accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        enable_utc=True,
        timezone=config.timezone,
        task_default_queue=DEFAULT_QUEUE,
        # A task is done when it has ended, not when it has begun.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_soft_time_limit=config.task_soft_time_limit,
        task_time_limit=config.task_time_limit,
        # Nobody waits for the results of what beat sends; `task run` asks for the one it wants.
        task_ignore_result=True,
        result_expires=config.result_expires,
        # Whoever sends must never wait: it is dropped, and the rescan finds what it was about.
        task_publish_retry=False,
        worker_prefetch_multiplier=config.worker_prefetch_multiplier,
        worker_pool="threads",
        worker_send_task_events=False,
        worker_enable_remote_control=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_heartbeat=0,
        broker_transport_options={
            # A task must not be given to a second worker while the first still works on it.
            "visibility_timeout": 3 * config.task_time_limit,
            # By default kombu looks for tasks of dead workers every 100 s only.
            "unacked_restore_interval": 30,
            "unacked_restore_throttle": 1,
            "socket_timeout": SOCKET_TIMEOUT,
        },
        result_backend_transport_options={"retry_policy": {"max_retries": 0}},
        redis_socket_timeout=SOCKET_TIMEOUT,
        redis_retry_on_timeout=False,
    )
    return app


def _add(app: Celery, task: ProgramTask) -> None:
    """Make a Celery task of a program's one, and tasks of its callbacks."""
    queue = task.queue or DEFAULT_QUEUE
    callback_queue = task.callback_queue or queue
    names = tuple(f"{task.name}.{callback.__name__}" for callback in task.callbacks)
    for name, callback in zip(names, task.callbacks, strict=True):
        if name not in app.tasks:
            app.task(name=name, queue=callback_queue, shared=False)(callback)

    def run(*args: Any, **kwargs: Any) -> Any:
        result = wire.checked(task.function(*args, **kwargs), f"task {task.name!r}")
        if result is not None:
            for name in names:
                app.send_task(name, args=[result], queue=callback_queue, ignore_result=True)
        return result

    app.task(name=task.name, queue=queue, shared=False)(_as(task.function, run))


def _as(function: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """Give a wrapper the name and documentation of what it wraps; a bound method has no __dict__ of its own."""
    update_wrapper(wrapper, function, updated=())
    return wrapper
