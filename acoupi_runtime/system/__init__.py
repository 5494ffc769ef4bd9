"""system: being furnished."""
