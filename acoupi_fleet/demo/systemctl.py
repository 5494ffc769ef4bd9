"""systemctl: the command of this name in a virtual sensor: hands its words to the sensor's manager. Stdlib only."""

from __future__ import annotations

import json
import os
import socket
import sys


def main(argv: list[str]) -> int:
    """Ask the manager, print its answer, exit with its code; 1 and one line where none listens."""
    try:
        with socket.socket(socket.AF_UNIX) as door:
            door.connect(f"{os.environ.get('XDG_RUNTIME_DIR')}/systemd")
            door.sendall(json.dumps(argv).encode() + b"\n")
            said = json.loads(door.makefile().readline())
    except (OSError, ValueError) as error:
        sys.stderr.write(f"Failed to connect to bus: {error}\n")
        return 1
    (sys.stdout if said["code"] in {0, 3} else sys.stderr).write(said["text"])
    return int(said["code"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
