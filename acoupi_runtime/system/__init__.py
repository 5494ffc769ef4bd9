"""system: the processes of a sensor, and what is asked of them. Imports no Celery: it comes with its users."""

from __future__ import annotations

from typing import TYPE_CHECKING

from acoupi_runtime.home import Home

if TYPE_CHECKING:
    from celery import Celery


def get_celery_app(home: Home | None = None) -> Celery:
    """The Celery app of a home; `app.py` there calls this, so that `celery -A app` works."""
    from acoupi_runtime.system import apps

    return apps.get_celery_app(home)
