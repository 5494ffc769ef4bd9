"""components: being furnished."""
