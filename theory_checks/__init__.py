"""Compare measured training trajectories with the predictions of docs/theory.md.

Run `theory-checks run`, or `python -m theory_checks run`. For checks of your own (docs/your-own-check.md)
this package has `check`, `Evidence`, `Curve`, `Setting` and `per_seed`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from theory_checks.registry import Curve, Evidence, check
    from theory_checks.runs import per_seed
    from theory_checks.setting import Setting

__all__ = ["Curve", "Evidence", "Setting", "check", "per_seed"]

_HOME = {
    "Curve": "registry",
    "Evidence": "registry",
    "Setting": "setting",
    "check": "registry",
    "per_seed": "runs",
}


def __getattr__(name: str) -> Any:
    """Import a name on first use: the command line answers, and sets JAX up, before JAX is imported."""
    if name not in _HOME:
        raise AttributeError(f"module 'theory_checks' has no attribute {name!r}")
    return getattr(import_module(f"theory_checks.{_HOME[name]}"), name)
