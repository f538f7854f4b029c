"""Entry point of `python -m supplementary`."""

import sys

from .cli import main

sys.exit(main())
