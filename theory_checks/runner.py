"""Run checks and their controls, and collect what they found."""

import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from theory_checks.registry import Check, Curve, Evidence
from theory_checks.setting import Setting

MATMUL_PRECISION = "highest"
"""float32 on GPUs and TPUs multiplies in fewer bits unless told otherwise (docs/theory.md 6)."""


@dataclass(frozen=True)
class ControlResult:
    """A control: what was broken, the error it gave, and whether the check refuted it."""

    broken: str
    error: float
    refuted: bool


@dataclass(frozen=True)
class Result:
    """What one check found. `outcome` is `"pass"`, `"fail"`, `"vacuous"` or `"error"`."""

    name: str
    claim: str
    source: str
    outcome: str
    controls: tuple[ControlResult, ...] = ()
    evidence: Evidence | None = None
    seconds: float = 0.0
    detail: str = ""
    curves: tuple[Curve, ...] = field(default=(), repr=False)

    @property
    def passed(self) -> bool:
        """Whether the claim held and every control was refuted."""
        return self.outcome == "pass"

    def summary(self) -> dict[str, Any]:
        """The check's entry in `report.json`."""
        evidence = self.evidence
        return {
            "name": self.name,
            "claim": self.claim,
            "source": f"docs/theory.md {self.source}",
            "passed": self.passed,
            "outcome": self.outcome,
            "detail": self.detail,
            "quantity": evidence.quantity if evidence else None,
            "predicted": _plain(evidence.predicted) if evidence else None,
            "measured": _plain(evidence.measured) if evidence else None,
            "error": _plain(evidence.error) if evidence else None,
            "errors_by_seed": _plain(np.atleast_1d(evidence.errors)) if evidence else None,
            "tolerance": _plain(evidence.tolerance) if evidence else None,
            "tolerance_reason": evidence.reason if evidence else None,
            "control": [
                {"broken": c.broken, "error": _plain(c.error), "refuted": c.refuted}
                for c in self.controls
            ],
            "seconds": round(self.seconds, 3),
        }


def run_check(check: Check, setting: Setting) -> Result:
    """Run one check and its controls; an exception inside it is an error, never a pass."""
    start = time.perf_counter()
    claimed = check.name, check.claim, check.source
    try:
        with jax.default_matmul_precision(MATMUL_PRECISION):
            evidence = check.compare(setting)
            controls = tuple(
                _run_control(check, setting, broken, overrides)
                for broken, overrides in check.controls.items()
            )
    except Exception as error:
        return Result(
            *claimed,
            outcome="error",
            seconds=time.perf_counter() - start,
            detail=f"{type(error).__name__}: {error}",
        )
    vacuous = [control.broken for control in controls if not control.refuted]
    if not evidence.holds:
        outcome, detail = "fail", f"error {evidence.error:.3g} > {evidence.tolerance:.3g}"
    elif vacuous:
        outcome, detail = "vacuous", f"still passes with {' and with '.join(vacuous)}"
    else:
        outcome, detail = "pass", ""
    return Result(
        *claimed,
        outcome=outcome,
        controls=controls,
        evidence=evidence,
        seconds=time.perf_counter() - start,
        detail=detail,
        curves=evidence.curves,
    )


def run_checks(checks: Sequence[Check], setting: Setting) -> Iterator[Result]:
    """Run checks one after the other, yielding each result as it is there."""
    for check in checks:
        yield run_check(check, setting)


def environment(setting: Setting) -> dict[str, Any]:
    """Device, versions and settings of a run, for the report."""
    device = jax.devices()[0]
    packages = ("lowdim-jax", "jax", "jaxlib", "optax", "diffrax", "numpy", "scipy")
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "dtype": setting.dtype,
        "matmul_precision": MATMUL_PRECISION,
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in packages},
        "settings": {
            "size": setting.size,
            "target": setting.target_note or "synthetic: Gaussian, every (d/2r)-th singular triplet",
            "shape": list(setting.shape),
            "rank": setting.rank,
            "singular_values": _plain(setting.targets.singular_values[0]),
        },
        "seeds": list(range(setting.seeds)),
    }


def _run_control(check: Check, setting: Setting, broken: str, overrides) -> ControlResult:
    evidence = check.compare(setting, **overrides)
    return ControlResult(broken, evidence.error, refuted=not evidence.holds)


def _plain(value: Any) -> Any:
    """Numbers and arrays as JSON values of six digits; what JSON has no number for as a string."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    array = np.asarray(value)
    if array.ndim:
        return [_plain(item) for item in array]
    if array.dtype.kind in "biu":
        return array.item()
    number = float(array)
    return float(f"{number:.6g}") if np.isfinite(number) else str(number)
