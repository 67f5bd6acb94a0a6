"""Recovery from data alone: a compressed network trained without tuning, stopped and kept with care."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import jax.numpy as jnp
import numpy as np

from lowdim_jax._host import as_pytree, on_host
from lowdim_jax.compression import compress
from lowdim_jax.descent import DescentState, gradient_descent, initial_state
from lowdim_jax.networks import Weights, check_depth, widths
from lowdim_jax.optimizers import GradientDescent
from lowdim_jax.problems.base import Problem, max_learning_rate, top_singular_value
from lowdim_jax.trajectory import Status

EDGE_FRACTION = 0.5
"""Learning rate, as a fraction of the edge of stability of docs/theory.md 5.2."""
START = 1e-7
"""Singular values `ε^L` of the initial product, as a fraction of the surrogate's largest one."""
TOLERANCE = 1e-11
"""Loss at which training ends, as a fraction of the loss of the zero matrix."""
PATIENCE = 0.5
"""How much longer than to its best validation loss a run goes on, as a fraction of that time."""


LEAST_CHECKS = 10
"""Checks without improvement that a run is granted at least."""


@dataclass(frozen=True)
class Fit:
    """A trained network, how it was trained, and how that went.

    Attributes
    ----------
    weights
        Those of the smallest validation loss; the last ones, if nothing was validated on.
    best_step
        The step they are from.
    steps, losses, validation
        `(n,)`: step number, training loss and validation loss (NaN without one) at every check.
    settings
        `depth`, `rank`, `scale`, `alpha`, `learning_rate` and `check_every`, as used.
    status
        How the run ended.
    message
        The same in one sentence.
    """

    weights: Weights
    best_step: int
    steps: np.ndarray
    losses: np.ndarray
    validation: np.ndarray
    settings: dict[str, Any]
    status: Status
    message: str


def fit(
    problem: Problem,
    /,
    *,
    depth: int = 3,
    rank: int | None = None,
    scale: float | None = None,
    start: Weights | None = None,
    alpha: float = 1.0,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    steps: int = 50_000,
    tolerance: float = TOLERANCE,
    validate: Callable[[Weights], jax.Array] | None = None,
    patience: float = PATIENCE,
    check_every: int = 50,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> Fit:
    """Train a compressed network on a problem; every setting has a default that follows from the data.

    Parameters
    ----------
    problem
        Any `Problem`: completion, sensing, factorization, one spread over devices, one of your own.
    depth
        Number of layers `L ≥ 2`.
    rank
        `r̂`; by default twice the number of components of the surrogate above its noise (`compress`).
    scale
        `ε`; by default `ε^L` is 1e-7 times the surrogate's largest singular value.
    start
        Initial weights, in place of the compressed network of `depth`, `rank` and `scale`.
    alpha
        `α`, ratio of outer to middle learning rate.
    learning_rate
        `η`; by default half of `max_learning_rate(problem, depth=depth, alpha=alpha)`.
    weight_decay
        `λ` of the penalty `(λ/2) Σ_l ‖W_l‖_F²`.
    steps, tolerance
        Train until the loss is `tolerance` times that of the zero matrix, at most `steps` steps.
    validate
        Function of the weights, for example `held_out.loss`. With it the best weights are kept, and
        training stops `patience` times the best step after that step (ten checks at least).
    check_every
        Steps between checks, at which the run validates, saves and may stop.
    checkpoint
        File that every check replaces by the state of the run. If it exists, the run goes on from it,
        bitwise as if it had not been interrupted.
    progress
        Show a progress bar on standard error.

    Raises
    ------
    ValueError
        If a setting is out of range, or the checkpoint is of another run.
    """
    depth = depth if start is None else len(start)
    check_depth(depth, least=2)
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance={tolerance}, expected a fraction of the initial loss in (0, 1)")
    if not patience > 0:
        raise ValueError(f"patience={patience}, expected a positive number")
    data = on_host(problem)
    if start is None and scale is None:
        scale = (START * float(top_singular_value(data))) ** (1 / depth)
    if learning_rate is None:
        learning_rate = EDGE_FRACTION * float(max_learning_rate(data, depth=depth, alpha=alpha))
    weights = compress(data, depth=depth, scale=scale, rank=rank) if start is None else start
    settings = {
        "depth": depth,
        "rank": widths(weights)[1],
        "scale": None if scale is None else float(scale),
        "alpha": float(alpha),
        "learning_rate": float(learning_rate),
        "weight_decay": weight_decay,
        "check_every": check_every,
    }
    optimizer = GradientDescent(learning_rate, alpha=alpha, weight_decay=weight_decay)
    state = jax.jit(initial_state)(as_pytree(problem.loss), optimizer, weights)
    run = _Run(state, validate, patience)
    run.check(state)
    goal = tolerance * float(state.loss)
    if checkpoint is not None and Path(checkpoint).exists():
        run.load(Path(checkpoint), settings)
    with _bar(steps) if progress else nullcontext() as show:

        def check(state: DescentState) -> bool:
            run.check(state)
            if checkpoint is not None:
                run.save(Path(checkpoint), settings)
            if show is not None:
                show(*run.history[-1])
            return run.overdue(check_every)

        trajectory = gradient_descent(
            problem,
            run.state,
            optimizer,
            steps=steps,
            record_every=check_every,
            tolerance=goal,
            callback=check,
            callback_every=check_every,
        )
    numbers, losses, validation = np.array(run.history).T
    return Fit(
        weights=run.best,
        best_step=run.best_step,
        steps=numbers.astype(int),
        losses=losses,
        validation=validation,
        settings=settings,
        status=Status(int(trajectory.status)),
        message=trajectory.message,
    )


class _Run:
    """What is kept of a run beside its state: the history of its checks, and the best weights so far."""

    def __init__(self, state: DescentState, validate: Callable | None, patience: float):
        self.state, self.best, self.history = state, state.weights, []
        self.validate, self.patience = validate and jax.jit(validate), patience

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

    def overdue(self, check_every: int) -> bool:
        """Whether the last improvement of the validation loss is too long ago."""
        if self.validate is None:
            return False
        wait = max(self.patience * self.best_step, LEAST_CHECKS * check_every)
        return int(self.state.step) >= self.best_step + wait

    def save(self, path: Path, settings: dict) -> None:
        """Replace the checkpoint, under a temporary name first: a kill leaves the old one or the new."""
        leaves = jax.tree.leaves((self.state, self.best))
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            np.savez(file, *leaves, history=np.array(self.history), settings=json.dumps(settings))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def load(self, path: Path, settings: dict) -> None:
        """Go on from a checkpoint; `ValueError` unless it is of this run."""
        try:
            with np.load(path, allow_pickle=False) as saved:
                arrays = dict(saved)
            written, history = json.loads(str(arrays.pop("settings"))), arrays.pop("history")
        except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
            raise ValueError(f"checkpoint {str(path)!r} is not one of a fit: {error}") from error
        for name, value in settings.items():
            if written.get(name) != value:
                raise ValueError(
                    f"checkpoint {str(path)!r} was written with {name}={written.get(name)}, now it is {value}"
                )
        if tuple(history[0][1:2]) != self.history[0][1:2]:
            raise ValueError(f"checkpoint {str(path)!r} was written for other data: the first losses differ")
        leaves = [jnp.asarray(arrays[f"arr_{index}"]) for index in range(len(arrays))]
        structure = jax.tree.structure((self.state, self.best))
        self.state, self.best = jax.tree.unflatten(structure, leaves)
        self.history = [tuple(row) for row in history]


@contextmanager
def _bar(steps: int) -> Iterator[Callable[[float, float, float], None]]:
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
