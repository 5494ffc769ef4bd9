"""store: being furnished."""
