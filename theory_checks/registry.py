"""What a check is: a claim, the comparison that tests it, and the controls that must fail it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Curve:
    """Predicted and measured values over the same `x`, drawn together in the report.

    `predicted` and `measured` have shape `(n,)` or `(n, k)` for `k` lines; they are drawn dashed and solid.
    `labels` name the two where they are something else.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(3)
    >>> Curve("a decay", x=x, predicted=np.exp(-x), measured=np.exp(-x)).title
    'a decay'
    """

    title: str
    x: np.ndarray
    predicted: np.ndarray
    measured: np.ndarray
    xlabel: str = "flow time t"
    ylabel: str = ""
    xlog: bool = False
    ylog: bool = False
    labels: tuple[str, str] = ("predicted", "measured")

    def __post_init__(self):
        lengths = {name: np.shape(getattr(self, name))[:1] for name in ("x", "predicted", "measured")}
        if len(set(lengths.values())) > 1 or () in lengths.values():
            raise ValueError(f"curve {self.title!r}: x, predicted and measured have lengths {lengths}")


@dataclass(frozen=True)
class Evidence:
    """Outcome of one comparison of prediction and measurement.

    Attributes
    ----------
    errors
        One number a seed: the worst disagreement, in the norm `quantity` names.
    tolerance
        Largest error at which the claim holds.
    reason
        Where the tolerance comes from: rounding, step size, initialization scale, resolution.
    quantity
        What `errors` measures, in words.
    predicted, measured
        Headline numbers to print side by side.
    timed
        Whether `errors` and `measured` come from a clock, and so differ from run to run.

    Raises
    ------
    ValueError
        If there is no error, or one is no number.

    Examples
    --------
    >>> import numpy as np
    >>> numbers = {"predicted": {"σ": 2.0}, "measured": {"σ": 2.0 + 3e-9}}
    >>> evidence = Evidence(
    ...     errors=np.array([3e-9]), tolerance=1e-8, reason="rounding", quantity="absolute error", **numbers
    ... )
    >>> bool(evidence.holds)
    True
    """

    errors: np.ndarray
    tolerance: float
    reason: str
    quantity: str
    predicted: Any
    measured: Any
    curves: tuple[Curve, ...] = ()
    timed: bool = False

    def __post_init__(self):
        if np.size(self.errors) == 0:
            raise ValueError("errors is empty, expected one number a seed")
        np.asarray([*np.ravel(self.errors), self.tolerance], float)  # raises for what is no number

    @property
    def error(self) -> float:
        """Worst error over seeds; NaN counts as infinitely wrong."""
        errors = np.atleast_1d(np.asarray(self.errors, float))
        return float(np.max(np.where(np.isnan(errors), np.inf, errors)))

    @property
    def holds(self) -> bool:
        """Whether the claim holds for every seed."""
        return self.error <= self.tolerance


SIDES = {
    "theorem": "a number or formula of docs/theory.md, written out in the check",
    "reference": "`theory_checks.reference`",
    "NumPy": "NumPy, SciPy or optax, called by the check",
    "library": "`lowdim_jax`",
}
"""What the predicted or the measured side of a check can rest on."""


class NotApplicable(Exception):
    """Raised by a check whose hypotheses a setting does not meet, with the reason: neither pass nor fail.

    Examples
    --------
    >>> raise_ = NotApplicable("the target has one component only")
    >>> str(raise_)
    'the target has one component only'
    """


@dataclass(frozen=True)
class Check:
    """A registered check.

    `compare(setting)` tests the claim; `compare(setting, **overrides)` repeats the same comparison
    with a hypothesis broken on purpose, for each of `controls`, and has to fail. `rests_on` says what
    the predicted and the measured side are made with, names of `SIDES`; where both are the library's,
    `pinned_by` is the check that ties one of them to something else.

    Examples
    --------
    >>> from theory_checks.selection import select
    >>> (one,) = select(["scalar-map"])
    >>> one.source
    '2.1'
    """

    name: str
    claim: str
    source: str
    compare: Callable[..., Evidence]
    controls: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    any_target: bool = True
    precise: bool = False
    rests_on: tuple[str, str] | None = None
    pinned_by: str = ""
    optimized: bool = False
    alone: bool = False


_REGISTRY: dict[str, Check] = {}
_OWN_FILES: set[Path] = set()


def check(
    name: str,
    *,
    claim: str,
    source: str,
    controls: Mapping[str, Mapping[str, Any]],
    any_target: bool = True,
    precise: bool = False,
    rests_on: tuple[str, str] | None = None,
    pinned_by: str = "",
    optimized: bool = False,
    alone: bool = False,
) -> Callable[[Callable[..., Evidence]], Callable[..., Evidence]]:
    """Register a comparison function as a check.

    Parameters
    ----------
    name
        Unique, for `--only`.
    claim
        The claim, one sentence.
    source
        The statement of docs/theory.md it tests, for example `"2.1"`; several are comma-separated.
    controls
        What is broken, in words, and the keyword arguments of the function that break it. At least
        one: a comparison that nothing can fail is no check.
    any_target
        Whether it applies to a matrix given with `--target`, or makes its own.
    precise
        Whether it is to notice matrix products in fewer bits than the run's precision. On a device
        that multiplies so by default these are one more control (docs/theory.md 6.2, 6.3).
    rests_on
        What the predicted and the measured side are made with, two of `SIDES`; checks of your own may leave
        it out.
    pinned_by
        Where both sides are the library's: the check that ties one of them to something else.
    optimized
        Whether XLA is to optimize its programs on a CPU. By default it is not: that takes twice as long, and
        most checks run a program once. For checks of time, and those that train for long.
    alone
        Whether nothing may run beside it: for checks of time.

    Raises
    ------
    ValueError
        If the name is taken, there is no control, or a side is none of `SIDES`.

    Examples
    --------
    >>> import numpy as np
    >>> with only_here():
    ...     @check("two", claim="2 is even.", source="1.2", controls={"three": {"number": 3}})
    ...     def two_is_even(setting, /, *, number=2):
    ...         return ...
    ...     "two" in registered()
    True
    """

    def register(compare: Callable[..., Evidence]) -> Callable[..., Evidence]:
        if name in _REGISTRY:
            raise ValueError(f"name={name!r} is registered twice")
        if not controls:
            raise ValueError(f"check {name!r} has no negative control")
        if rests_on is not None and not set(rests_on) <= SIDES.keys():
            raise ValueError(f"check {name!r} rests on {rests_on}, expected two of {', '.join(SIDES)}")
        _REGISTRY[name] = Check(
            name, claim, source, compare, controls, any_target, precise, rests_on, pinned_by,
            optimized, alone,
        )
        return compare

    return register


def registered() -> dict[str, Check]:
    """The checks registered so far, by name; a copy."""
    return dict(_REGISTRY)


def own_files() -> frozenset[Path]:
    """Files of the user's own checks that were loaded."""
    return frozenset(_OWN_FILES)


def add_own_file(path: Path) -> None:
    """Remember a file of the user's own checks, for the place of an error in it."""
    _OWN_FILES.add(path)


@contextmanager
def only_here() -> Iterator[None]:
    """Forget on leaving what was registered inside: for tests, and for files loaded one after the other."""
    before = registered()
    try:
        yield
    finally:
        _REGISTRY.clear()
        _REGISTRY.update(before)
