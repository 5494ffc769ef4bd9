"""tasks: being furnished."""
