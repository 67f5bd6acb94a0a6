"""The checks, one module a family; importing this package registers them in this order."""

from theory_checks.checks import (  # noqa: F401
    modes,
    incremental,
    compression,
    conservation,
)
