"""`python -m theory_checks`."""

import sys

from theory_checks.cli import main

if __name__ == "__main__":
    sys.exit(main())
