"""Sensors without hardware: real Debian 12 systems in containers, for tests and people (`python -m tests.sensors`)."""

from tests.sensors.machine import why_not
from tests.sensors.rig import Rig
from tests.sensors.sensor import ImageName, Sensor

__all__ = ["ImageName", "Rig", "Sensor", "why_not"]
