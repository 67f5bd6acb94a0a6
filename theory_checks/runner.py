"""Run checks and their controls, and collect what they found."""

import platform
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowdim_jax
from lowdim_jax._cache import forget_programs, optimizing
from theory_checks.interrupts import Interrupts
from theory_checks.machine import circumstances, commit, processor
from theory_checks.registry import Check, Curve, Evidence, NotApplicable, own_files
from theory_checks.setting import Setting

MATMUL_PRECISION = "highest"
"""float32 on GPUs and TPUs multiplies in fewer bits unless told otherwise (docs/theory.md 6.2, 6.3)."""
FEWER_BITS = "matrix products in the fewer bits that are this device's default"


@dataclass(frozen=True)
class ControlResult:
    """A control: what was broken, the error it gave, and whether the check refuted it."""

    broken: str
    error: float
    refuted: bool


@dataclass(frozen=True)
class Result:
    """What one check found.

    `outcome` is `"pass"`, `"fail"`, `"vacuous"`, `"error"`, or `"not-applicable"` where the setting does not
    meet the claim's hypotheses: then the claim says nothing, and `detail` says which is not met.
    """

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
            "errors_by_seed": _plain(np.ravel(evidence.errors)) if evidence else None,
            "tolerance": _plain(evidence.tolerance) if evidence else None,
            "tolerance_reason": evidence.reason if evidence else None,
            "control": [
                {"broken": c.broken, "error": _plain(c.error), "refuted": c.refuted}
                for c in self.controls
            ],
            "timed": bool(evidence and evidence.timed),
            "seconds": round(self.seconds, 3),
        }


def run_check(check: Check, setting: Setting) -> Result:
    """Run one check and its controls; an exception inside it is an error, never a pass."""
    forget_programs()
    start = time.perf_counter()
    claimed = check.name, check.claim, check.source
    try:
        with jax.default_matmul_precision(MATMUL_PRECISION), _optimizing(check):
            evidence = _compare(check, setting)
            controls = [
                control
                for broken, overrides in check.controls.items()
                if (control := _control_of(check, setting, broken, overrides)) is not None
            ]
        if check.precise and default_product_error(setting.dtype, setting.shape[1]) > setting.rounding(1):
            with jax.default_matmul_precision("default"):
                controls.append(_control(FEWER_BITS, _compare(check, setting)))
        outcome, detail = _judge(evidence, controls)
        result = Result(
            *claimed,
            outcome=outcome,
            controls=tuple(controls),
            evidence=evidence,
            seconds=time.perf_counter() - start,
            detail=detail,
            curves=evidence.curves,
        )
        result.summary()  # what cannot be reported is an error of this check, not the end of the run
        return result
    except NotApplicable as unmet:
        seconds, because = time.perf_counter() - start, f"not applicable, because {unmet}"
        return Result(*claimed, outcome="not-applicable", seconds=seconds, detail=because)
    except (Exception, SystemExit) as error:
        return Result(
            *claimed,
            outcome="error",
            seconds=time.perf_counter() - start,
            detail=_explain(error, check, setting),
        )


def run_checks(
    checks: Sequence[Check], setting: Setting, results: list[Result], interrupts: Interrupts
) -> Iterator[Result]:
    """Run checks one after the other, adding each result to `results` and yielding it as it is there."""
    for check in checks:
        interrupts.allowed = True
        results.append(run_check(check, setting))  # one expression: nothing comes between
        interrupts.allowed = False
        if interrupts.asked and results[-1].outcome == "error":
            del results[-1]  # what ran under the check has taken Ctrl-C for an error of its own
            return
        yield results[-1]


def environment(setting: Setting) -> dict[str, Any]:
    """Device, versions and settings of a run, for the report."""
    device = jax.devices()[0]
    error = default_product_error(setting.dtype, setting.shape[1])
    applies = error > setting.rounding(1)
    packages = ("jax", "jaxlib", "flax", "optax", "diffrax", "numpy", "scipy")
    kind = processor() if device.platform == "cpu" else device.device_kind
    return {
        "device": f"{device.platform}: {kind}",
        "dtype": setting.dtype,
        "matmul_precision": MATMUL_PRECISION,
        "default_matmul": f"unless told otherwise this device multiplies {setting.dtype} matrices "
        + (
            f"to {error:.1e} only: checks that have to notice it are repeated so, as one more control"
            if applies
            else f"as exactly as {setting.dtype} can: there is nothing to notice, and no control made of it"
        ),
        "run": circumstances(),
        "versions": {"commit": commit(), "python": platform.python_version()}
        | {"lowdim-jax": lowdim_jax.__version__}
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


@cache
def default_product_error(dtype: str, width: int) -> float:
    """Relative error of a product of square matrices on this device, at JAX's default precision.

    A GPU that has TF32 gives about 3e-4 in float32, a TPU 3e-3, a CPU rounding.
    """
    matrix = jax.random.normal(jax.random.key(0), (width, width), dtype)
    exact = np.asarray(matrix, np.float64) @ np.asarray(matrix, np.float64)
    with jax.default_matmul_precision("default"):
        product = np.asarray(jnp.matmul(matrix, matrix), np.float64)
    return float(np.linalg.norm(product - exact) / np.linalg.norm(exact))


def _optimizing(check: Check) -> AbstractContextManager[None]:
    """On a CPU, programs of a check that asks for nothing else are compiled fast rather than well."""
    return optimizing(check.optimized or jax.default_backend() != "cpu")


def _compare(check: Check, setting: Setting, **overrides: Any) -> Evidence:
    evidence = check.compare(setting, **overrides)
    if not isinstance(evidence, Evidence):
        raise TypeError(f"the check returned {type(evidence).__name__}, expected Evidence")
    return evidence


def _control_of(check: Check, setting: Setting, broken: str, overrides: Any) -> ControlResult | None:
    """A control's result; None where its own hypotheses are not met, so that it shows nothing."""
    try:
        return _control(broken, _compare(check, setting, **overrides))
    except NotApplicable:
        return None


def _control(broken: str, evidence: Evidence) -> ControlResult:
    return ControlResult(broken, evidence.error, refuted=not evidence.holds)


def _judge(evidence: Evidence, controls: Sequence[ControlResult]) -> tuple[str, str]:
    """Outcome, and the detail to print beside it."""
    if not evidence.holds:
        return "fail", f"error {evidence.error:.3g} > {evidence.tolerance:.3g}"
    if not controls:
        return "vacuous", "none of its controls applies here"
    missed = [control.broken for control in controls if not control.refuted]
    if missed:
        return "vacuous", f"still passes with {' and with '.join(missed)}"
    copies = [repr(curve.title) for curve in evidence.curves if draws_a_copy(curve)]
    if copies:
        return "vacuous", f"what curve {' and '.join(copies)} predicts is the measurement, bit for bit"
    return "pass", ""


def draws_a_copy(curve: Curve) -> bool:
    """Whether a curve's prediction is its measurement, bit for bit, which two computations do not give.

    Counts, and what is constant, can be predicted exactly.
    """
    predicted, measured = np.asarray(curve.predicted), np.asarray(curve.measured)
    whole = np.all(np.isfinite(predicted)) and np.array_equal(predicted, np.round(predicted))
    if curve.labels != Curve.labels or whole or np.ptp(predicted) == 0:
        return False
    if predicted.size < measured.size:  # one prediction for all lines
        predicted = np.broadcast_to(predicted.reshape(len(predicted), -1), measured.shape)
    return predicted.shape == measured.shape and np.array_equal(predicted, measured, equal_nan=True)


def _explain(error: BaseException, check: Check, setting: Setting) -> str:
    text = f"{type(error).__name__}: {error}{_where(error)}"
    exhausted = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    if exhausted or isinstance(error, MemoryError):
        return f"out of memory: check {check.name!r} at size {setting.size!r} ({text})"
    return text


def _where(error: BaseException) -> str:
    """Files and lines that an error went through in checks of the user's own, the innermost last."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) in own_files()
    ]
    return "".join(f"\n  {frame.filename}, line {frame.lineno}: {frame.line}" for frame in frames)


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
