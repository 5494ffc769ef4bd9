"""__main__: `python -m acoupi_runtime`, the same as `acoupi-runtime`. Touches nothing."""

import sys

from acoupi_runtime.cli import main

sys.exit(main())
