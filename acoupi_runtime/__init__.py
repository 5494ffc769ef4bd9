"""acoupi_runtime: the device's program; records, processes, stores and reports. Imports nothing of acoupi_fleet."""

__version__ = "0.1.0"
