"""A descent that is checked as it goes: validated, saved, stopped; the best weights are kept."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lowdim_jax._cache import Program
from lowdim_jax._host import as_pytree, on_host
from lowdim_jax._reading import named
from lowdim_jax.descent import DescentState
from lowdim_jax.networks import Weights
from lowdim_jax.problems.base import Problem, top_singular_value

if TYPE_CHECKING:
    from lowdim_jax.checkpoints import Checkpoints

LEAST_CHECKS = 10
"""Checks without improvement that a run is granted at least."""
LATE, SLOW = 0.75, 0.05
"""Descent is slow where its loss falls by less than `SLOW` after `LATE` of its steps."""
CLOSE = 1e-4
"""Loss, as a fraction of the zero matrix's, from which closing is faster than descent."""


class CheckedRun:
    """What is kept of a run beside its state: the history of its checks, and the best weights so far."""

    state: DescentState
    best: Weights

    def __init__(self, validate: Callable | None, patience: float, plateaus: tuple[float, float]):
        self.plateaus = plateaus
        self.history: list[tuple[int, float, float]] = []
        self.validate = validate and partial(_call, as_pytree(validate))  # whose data may be over processes
        self.patience = patience

    @property
    def best_step(self) -> int:
        """Step of the smallest validation loss; the last step where there is none."""
        steps, _, validation = np.array(self.history).T
        return int(steps[-1 if self.validate is None else np.argmin(np.nan_to_num(validation, nan=np.inf))])

    def check(self, state: DescentState) -> None:
        """Add a row to the history, and keep the weights if they are the best so far."""
        validation = np.nan if self.validate is None else float(self.validate(state.weights))
        self.state = state
        self.history.append((int(state.step), float(state.loss), validation))
        if self.best_step == int(state.step):
            self.best = state.weights

    def add(self, step: int, loss: float, weights: Weights) -> None:
        """Add a row for weights that are not of the descent, and keep them if they are the best so far."""
        validation = np.nan if self.validate is None else float(self.validate(weights))
        best = np.nanmin([row[2] for row in self.history]) if self.validate else np.inf
        self.history.append((step, loss, validation))
        if self.validate is None or validation < best:
            self.best = weights

    def overdue(self, check_every: int) -> bool:
        """Whether the last improvement of the validation loss is too long ago.

        Not before the first component had the time to be learned: until then nothing could improve.
        """
        if self.validate is None:
            return False
        wait = max(self.patience * self.best_step, LEAST_CHECKS * check_every, self.plateaus[0])
        return int(self.state.step) >= self.best_step + wait

    def settled(self, zero: float) -> bool:
        """Whether closing takes over: all visible components had their time, and descent has become slow.

        Or it has come so close that closing is faster; `zero` is the loss of the zero matrix.
        """
        steps, losses, _ = np.array(self.history).T
        if steps[-1] < self.plateaus[1] or len(steps) <= LEAST_CHECKS:
            return False
        earlier = losses[np.searchsorted(steps, LATE * steps[-1])]
        return bool(losses[-1] <= CLOSE * zero or losses[-1] > (1 - SLOW) * earlier)

    def save(self, saved: "Checkpoints", settings: dict) -> None:
        """Save the state, the best weights, and everything that the run depends on."""
        history = [(*row[:2], None if math.isnan(row[2]) else row[2]) for row in self.history]
        run = {"state": self.state, "best": self.best}
        saved.save(int(self.state.step), run, {**settings, "history": history})

    def restore(self, saved: "Checkpoints", like: DescentState) -> None:
        """Go on from the newest checkpoint."""
        run = saved.restore({"state": like, "best": like.weights})
        self.state, self.best = run["state"], run["best"]
        rows = saved.settings()["history"]
        self.history = [(*row[:2], math.nan if row[2] is None else row[2]) for row in rows]


@Program
def _call(function, weights):
    return function(weights)


def same_run(saved: dict, settings: dict, folder: str | Path) -> dict:
    """The settings of a checkpoint, which are those given up to rounding; `ValueError` if they are not."""
    where = f"checkpoint in {named(str(folder))}"
    for name, value in settings.items():
        if not _same(saved.get(name), value):
            raise ValueError(
                f"{where} was written for other data"
                if name == "data"
                else f"{where} was written with {name}={saved.get(name)}, now it is {value}"
            )
    return {name: saved[name] for name in settings}


def _same(before: Any, now: Any) -> bool:
    """Whether two settings are the same: numbers up to the rounding of another number of devices."""
    if isinstance(before, float) and isinstance(now, float):
        return math.isclose(before, now, rel_tol=1e-5)
    return before == now


def fingerprint(problem: Problem) -> str | float:
    """What tells a problem's data from others: a digest of its arrays, or one that it was given.

    Over devices, where arrays depend on their number, it is the loss of one random network.
    """
    if given := getattr(problem, "fingerprint", ""):
        return given
    place = getattr(problem, "place", None)
    if place is None:
        digest = sha256()
        for leaf in jax.tree.leaves(on_host(problem)):
            digest.update(np.asarray(leaf).tobytes() if hasattr(leaf, "dtype") else repr(type(leaf)).encode())
        return digest.hexdigest()[:16]
    d_out, d_in = problem.shape
    rng = np.random.default_rng(0)
    size = float(top_singular_value(problem)) / (d_out * d_in) ** 0.5
    layers = size * rng.standard_normal((1, d_in)), rng.standard_normal((d_out, 1))
    weights = place([layer.astype(jax.dtypes.canonicalize_dtype(float)) for layer in layers])
    return float(_call(as_pytree(problem.loss), weights))


@contextmanager
def progress_bar(steps: int) -> Iterator[Callable[[float, float, float], None]]:
    """A progress bar with the losses, which disappears at the end; none where nobody watches."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    columns = (*Progress.get_default_columns(), TextColumn("loss {task.fields[losses]}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=steps, losses="")

        def show(step: float, loss: float, validation: float) -> None:
            losses = f"{loss:.3g}" if np.isnan(validation) else f"{loss:.3g}, validation {validation:.3g}"
            bar.update(task, completed=step, losses=losses)

        yield show
