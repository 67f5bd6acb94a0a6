"""The checks, one module a family; importing this package registers them in this order."""

from theory_checks.checks import (  # noqa: F401  (isort: the order is that of docs/theory.md)
    compression,  # isort: skip
    conservation,  # isort: skip
    incremental,  # isort: skip
    modes,  # isort: skip
    parsimony,  # isort: skip
)
