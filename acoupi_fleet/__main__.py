"""`python -m acoupi_fleet`: the command line. Touches nothing itself."""

import sys

from acoupi_fleet.cli import main

sys.exit(main())
