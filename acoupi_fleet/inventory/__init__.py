"""inventory: from a text to frozen hosts with merged variables. Reads files; knows no network and no model of ours."""

from acoupi_fleet.inventory.load import Inventory, load_inventory
from acoupi_fleet.inventory.model import Connection, Host, Origin, Variable

__all__ = ["Connection", "Host", "Inventory", "Origin", "Variable", "load_inventory"]
