"""Evidence from many pairs of a predicted and a measured value, all of them compared."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from theory_checks.registry import Evidence

SHOWN = 8
"""Pairs printed: those that differ most."""


def gap(predicted: Any, measured: Any) -> float:
    """Largest difference of two arrays, relative to the largest finite prediction; ∞ where shapes differ.

    Infinite predictions have to be met by the same infinity.
    """
    predicted, measured = np.asarray(predicted, float), np.asarray(measured, float)
    if predicted.shape != measured.shape:
        return np.inf
    finite = np.isfinite(predicted)
    if not np.array_equal(predicted[~finite], measured[~finite]):
        return np.inf
    size = np.max(np.abs(predicted[finite]), initial=0.0)
    differences = np.abs(measured[finite] - predicted[finite])
    worst = np.max(differences, initial=0.0)
    return float(worst / size if size > 0 else worst)


def evidence_of(
    pairs: Mapping[str, tuple[Any, Any]], *, tolerance: float, reason: str, quantity: str
) -> Evidence:
    """Evidence that every measured value, `pairs[name][1]`, is the predicted one, `pairs[name][0]`."""
    gaps = {name: gap(*pair) for name, pair in pairs.items()}
    gaps = {name: np.inf if np.isnan(value) else value for name, value in gaps.items()}
    shown = sorted(gaps, key=gaps.__getitem__, reverse=True)[:SHOWN]
    return Evidence(
        errors=np.array([gaps[shown[0]]]),
        tolerance=tolerance,
        reason=reason,
        quantity=f"{quantity}, the worst of {len(gaps)}",
        predicted={"difference": 0},
        measured={name: gaps[name] for name in shown},
    )
