"""remote: the door to a device: one verified SSH connection, one exec, one conversation. The only user of fabric."""

from acoupi_fleet.remote.hostkeys import HostKeys
from acoupi_fleet.remote.session import LinkLostError, Session, converse

__all__ = ["HostKeys", "LinkLostError", "Session", "converse"]
