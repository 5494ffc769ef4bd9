"""audio: being furnished."""
