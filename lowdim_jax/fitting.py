"""Recovery from data alone: a compressed network trained without tuning, stopped and kept with care."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lowdim_jax._host import as_pytree, on_host
from lowdim_jax._reading import named
from lowdim_jax.compression import compress
from lowdim_jax.descent import DescentState, gradient_descent, initial_state
from lowdim_jax.networks import Weights, check_depth, widths
from lowdim_jax.optimizers import GradientDescent
from lowdim_jax.problems.base import Problem, max_learning_rate, top_singular_value
from lowdim_jax.trajectory import Status

if TYPE_CHECKING:
    from lowdim_jax.checkpoints import Checkpoints

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

    Examples
    --------
    >>> import jax.numpy as jnp, lowdim_jax as ld
    >>> result = ld.fit(ld.factorization(jnp.diag(jnp.array([3.0, 2.0]))), depth=2, rank=2, steps=500)
    >>> result.status.name, result.settings["rank"]
    ('REACHED_TOLERANCE', 2)
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
    callback: Callable[[DescentState], bool | None] | None = None,
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
        Folder to which every check saves the state of the run (`lowdim_jax.checkpoints`). If there is one
        in it, the run goes on from it, bitwise as if it had not been interrupted; on another number of
        devices, up to rounding.
    callback
        Called with a `DescentState` at every check; the run stops where it returns True.
    progress
        Show a progress bar on standard error.

    Raises
    ------
    ValueError
        If a setting is out of range, or the checkpoint is of another run.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, lowdim_jax as ld
    >>> target = ld.random_target(jax.random.key(0), (30, 20), jnp.array([3.0, 2.0]))
    >>> mask = jax.random.uniform(jax.random.key(1), (30, 20)) < 0.7
    >>> problem = ld.completion(target.dense(), mask, truth=target)
    >>> result = ld.fit(problem, rank=4, steps=2000)
    >>> bool(problem.recovery_error(result.weights) < 0.05)
    True
    """
    depth = depth if start is None else len(start)
    check_depth(depth, least=2)
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance={tolerance}, expected a fraction of the initial loss in (0, 1)")
    if not patience > 0:
        raise ValueError(f"patience={patience}, expected a positive number")
    data = on_host(problem)
    if learning_rate is None:
        learning_rate = EDGE_FRACTION * float(max_learning_rate(data, depth=depth, alpha=alpha))
    weights = start
    if weights is None:
        scale = float((START * float(top_singular_value(data))) ** (1 / depth) if scale is None else scale)
        weights = compress(data, depth=depth, scale=scale, rank=rank)
    settings = {
        "depth": depth,
        "rank": widths(weights)[1],
        "scale": None if scale is None else float(scale),
        "alpha": float(alpha),
        "learning_rate": float(learning_rate),
        "weight_decay": weight_decay,
        "check_every": check_every,
    }
    saved, now, run = None, {}, _Run(validate, patience)
    if checkpoint is not None:
        from lowdim_jax.checkpoints import Checkpoints  # whose library takes a second to import

        saved = Checkpoints(checkpoint)
        now = {"shape": list(data.shape), "data": _fingerprint(problem), **settings}
        if saved.latest is not None:
            now = _same_run(saved.settings(), now, checkpoint)
            settings = {name: now[name] for name in settings}
    optimizer = GradientDescent(settings["learning_rate"], alpha=settings["alpha"], weight_decay=weight_decay)
    state = jax.jit(initial_state)(as_pytree(problem.loss), optimizer, weights)
    goal = tolerance * float(state.loss)
    with _bar(steps) if progress else nullcontext() as show:

        def check(state: DescentState) -> bool:
            run.check(state)
            if saved is not None and np.isfinite(run.history[-1][1]):  # nothing goes on from what diverged
                run.save(saved, now)
            if show is not None:
                show(*run.history[-1])
            asked = callback is not None and bool(callback(state))
            return asked or run.overdue(check_every)

        if saved is None or saved.latest is None:
            check(state)
        else:
            run.restore(saved, state)
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
    if saved is not None:
        saved.close()
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

    state: DescentState
    best: Weights

    def __init__(self, validate: Callable | None, patience: float):
        self.history: list[tuple[int, float, float]] = []
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


def _same_run(saved: dict, settings: dict, folder: str | Path) -> dict:
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


def _fingerprint(problem: Problem) -> str | float:
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
    return float(jax.jit(lambda loss, weights: loss(weights))(as_pytree(problem.loss), weights))


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
