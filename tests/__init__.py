"""The tests: pure tables first, then real servers on this machine, then real Debian sensors (`tests.sensors`)."""
