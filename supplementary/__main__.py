"""Entry point of `python -m supplementary`."""

import sys

try:
    from .cli import main
except (ImportError, OSError) as error:  # a package is missing or broken: say which, and what to do
    from .doctor import main

    print(f"error: {error}\n", file=sys.stderr)

sys.exit(main())
