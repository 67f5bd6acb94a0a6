"""What the library refuses: arguments outside the domain of the formulas and definitions it computes."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowdim_jax as ld
from lowdim_jax import initialization, linalg, networks, spectra, theory
from lowdim_jax.flow import gradient_flow
from lowdim_jax.problems import regression_target, separated_target, whiten
from theory_checks.registry import Evidence, check
from theory_checks.setting import Setting

Calls = Iterator[tuple[str, Callable[[], object]]]


@check(
    "domains",
    claim="Outside the domain of a formula or a definition the library refuses with a ValueError; at its "
    "border it does not.",
    source="1.2, 1.3, 2.1, 2.2, 2.4, 3.2, 3.5, 5.1, 5.3",
    controls={"the calls at the border held to be outside": {"swapped": True}},
    any_target=False,
    rests_on=("theorem", "library"),
)
def domains(setting: Setting, /, *, swapped=False) -> Evidence:
    outside = [*_formulas(), *_networks(), *_matrices(), *_problems(setting), *_solvers(setting)]
    inside = [*_borders(setting)]
    taken = [name for name, call in (inside if swapped else outside) if _outcome(call) != "ValueError"]
    refused = [name for name, call in ([] if swapped else inside) if _outcome(call) != "fine"]
    wrong = [f"taken: {name}" for name in taken] + [f"refused: {name}" for name in refused]
    return Evidence(
        errors=np.array([len(wrong)]),
        tolerance=0,
        reason="whole numbers",
        quantity=f"calls that end otherwise, of {len(outside)} outside and {len(inside)} at the border",
        predicted={"calls": 0},
        measured={"calls": len(wrong)} | dict.fromkeys(wrong[:8], 1),
    )


def _outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "fine"


def _formulas() -> Calls:
    """Closed forms beyond their domain."""
    mode = {"depth": 3, "scale": 0.1}
    walk = {"learning_rate": 0.1, "steps": 2} | mode
    yield "level < 0", lambda: theory.mode_time(-1.0, 1.0, **mode)
    yield "target < 0", lambda: theory.mode_time(0.5, -1.0, **mode)
    yield "NaN", lambda: theory.mode_time(0.5, np.nan, **mode)
    for name, bad in {"depth": 0, "scale": 0.0, "alpha": -1.0}.items():
        yield f"{name} = {bad}", lambda bad={name: bad}: theory.mode_time(0.5, 1.0, **mode | bad)
    yield "depth 2.5", lambda: theory.mode_time(0.5, 1.0, depth=2.5, scale=0.1)  # type: ignore[arg-type]
    yield "α = 0 for two factors", lambda: theory.mode_time(0.5, 1.0, depth=2, scale=0.1, alpha=0.0)
    yield "t < 0", lambda: theory.mode_trajectory(-1.0, 1.0, **mode)
    for name, bad in {"steps": -1, "record_every": 0, "learning_rate": -0.1}.items():
        yield f"{name} = {bad}", lambda bad={name: bad}: theory.mode_descent(1.0, **walk | bad)
    yield "c = 0", lambda: theory.fit_time(1.0, tolerance=0.0, **mode)
    for c in (0.0, 1.0):
        yield f"c = {c}", lambda c=c: theory.fit_time_small_scale(1.0, tolerance=c, **mode)
    yield "plateaus of a matrix", lambda: theory.plateau_losses(np.ones((2, 2)))
    for name, bad in {"depth": 0, "alpha": -1.0}.items():
        yield f"sharpness, {name}", lambda bad={name: bad}: theory.sharpness(1.0, **{"depth": 3} | bad)
    yield "sharpness, top", lambda: theory.sharpness(-1.0, depth=3)
    yield "sharpness on the way, L = 1", lambda: theory.training_sharpness(1.0, 1.0, depth=1)
    yield "two-cycle, L = 1", lambda: theory.two_cycle(1.0, depth=1, learning_rate=0.1)
    yield "two-cycle, σ* < 0", lambda: theory.two_cycle(-1.0, depth=2, learning_rate=0.1)
    yield "two-cycle, η < 0", lambda: theory.two_cycle(1.0, depth=2, learning_rate=-0.1)
    yield "limit of the two-cycle, L = 1", lambda: theory.two_cycle_limit(1)
    yield "first change of sign, L = 1", lambda: theory.first_sign_change(1)
    yield "escape ratio, L = 2", lambda: theory.escape_ratio(2)
    yield "escape delay, σ* = 0", lambda: theory.escape_delay(0.0)
    bulk = {"depth": 2, "learning_rate": 0.1, "steps": 2}
    for name, bad in {"depth": 0, "steps": -1, "learning_rate": -0.1, "weight_decay": -1.0}.items():
        yield f"bulk, {name}", lambda bad={name: bad}: theory.bulk_descent(0.5, **bulk | bad)
    yield "bulk, ε < 0", lambda: theory.bulk_descent(-0.5, **bulk)
    for off in (1.0, 1.01):
        layers = (np.eye(3), np.diag([1.0, off, 1.0 + off]))
        yield f"two layers off balance by {off}", lambda layers=layers: theory.two_layer_flow(
            1.0, *layers, np.eye(3)
        )
    eye, none = np.eye(3), np.full((3, 3), np.nan)
    for layers in ((none, eye, eye), (eye, none, eye), (eye, eye, none)):
        yield "two layers of NaN", lambda layers=layers: theory.two_layer_flow(1.0, *layers)
    yield "two layers, t < 0", lambda: theory.two_layer_flow(-1.0, eye, eye, eye)
    yield "two layers of other shapes", lambda: theory.two_layer_flow(1.0, eye, eye, np.eye(2))
    parts = linalg.svd(jnp.eye(3))
    known: dict[str, Any]
    both = {"measurements": 5, "observed": 0.5}
    for known in ({}, both, {"measurements": 0}, {"observed": 0.0}, {"observed": 1.5}):
        yield f"surrogate's angle, {known}", lambda known=known: theory.surrogate_angle(parts, **known)


def _networks() -> Calls:
    """Chains that are none, widths that are none, initializations of no scale."""
    key, eye = jax.random.key(0), jnp.eye(3)
    for scale in (0.0, -1.0, np.inf, np.nan):
        yield f"ε = {scale}", lambda scale=scale: ld.orthogonal(key, (3, 3), scale=scale)
    for widths in ((3,), (3, 0)):
        yield f"widths {widths}", lambda widths=widths: ld.gaussian(key, widths, scale=1.0)
    for rank in (0, 4):
        yield f"r̂ = {rank} of 3", lambda rank=rank: ld.spectral(eye, rank=rank, depth=2, scale=1.0)
        yield f"widths of r̂ = {rank}", lambda rank=rank: ld.compressed_widths(3, 3, depth=2, rank=rank)
        yield f"compressed to {rank}", lambda rank=rank: ld.compress(eye, depth=2, scale=1.0, rank=rank)
    yield "compressed zeros", lambda: ld.compress(0 * eye, depth=2, scale=1.0)
    yield "compressed, L = 1", lambda: ld.compressed_widths(3, 3, depth=1, rank=2)
    yield "no depth", lambda: ld.full_widths(3, 3, depth=0)
    yield "depth True", lambda: ld.full_widths(3, 3, depth=True)
    yield "hidden 0", lambda: ld.full_widths(3, 3, depth=2, hidden=0)
    vectors = initialization.from_singular_vectors
    yield "unequal columns", lambda: vectors(eye, eye[:, :2], depth=2, scale=1.0)
    yield "no layer", lambda: ld.widths(())
    yield "a layer that is a vector", lambda: ld.widths((jnp.ones(3),))
    yield "layers that do not fit", lambda: ld.widths((jnp.ones((2, 3)), jnp.ones((4, 3))))
    yield "factors of one layer", lambda: networks.end_to_end_factors((eye,))
    for x in (jnp.ones(3), jnp.ones((2, 5))):
        yield f"inputs of shape {x.shape}", lambda x=x: ld.forward((eye,), x)
    yield "padded to less", lambda: ld.pad((eye, eye), 2)
    yield "roles of a matrix", lambda: ld.roles(eye)  # type: ignore[arg-type]
    low = linalg.svd(jnp.eye(4))
    yield "a target of another shape", lambda: spectra.modes((eye,), low)
    yield "an alignment of another shape", lambda: spectra.alignment((eye,), low)


def _matrices() -> Calls:
    """Matrices that are none, ranks beyond a matrix, rules that exclude each other."""
    eye, tall = jnp.eye(3), jnp.ones((3, 2))
    ones = jnp.ones(2)
    yield "a core of another length", lambda: ld.low_rank(tall, jnp.ones(3), tall)
    yield "a core that is a matrix", lambda: ld.low_rank(tall, jnp.eye(2), tall)
    yield "more components than rows", lambda: ld.low_rank(tall.T, jnp.ones(3), tall.T)
    for name, values in {"negative": -ones, "ascending": jnp.asarray([1.0, 2.0])}.items():
        yield f"values by hand: {name}", lambda values=values: spectra.modes(
            (eye,), linalg.LowRank(eye[:, :2], values, eye[:, :2])
        )
    yield "columns by hand", lambda: spectra.modes((eye,), linalg.LowRank(tall, ones, tall))
    yield "no component", lambda: ld.low_rank(tall[:, :0], ones[:0], tall[:, :0])
    yield "a core of NaN", lambda: ld.low_rank(tall, ones * np.nan, tall)
    yield "a factor of infinity", lambda: ld.low_rank(tall * np.inf, ones, tall)
    for rank in (0, 4):
        yield f"{rank} components of 3", lambda rank=rank: linalg.leading_svd(eye, rank)
    yield "4 orthonormal columns of 3", lambda: linalg.extend_orthonormal(eye, 4)
    rules = ({"energy": 0.5, "rtol": 0.1}, {"energy": 0.0}, {"energy": 1.5}, {"rtol": -1.0}, {"atol": -1.0})
    for rule in rules:
        yield f"rank by {rule}", lambda rule=rule: linalg.estimate_rank(eye, **rule)
    yield "angles of other spaces", lambda: linalg.subspace_angles(eye, jnp.ones((2, 1)))
    for name, bad in {"complex": eye * 1j, "vector": jnp.ones(3), "NaN": eye * np.nan,
                      "empty": jnp.ones((0, 3)), "text": "matrix"}.items():  # fmt: skip
        yield f"a matrix: {name}", lambda bad=bad: linalg.as_matrix("matrix", bad)


def _problems(setting: Setting) -> Calls:
    """Data that determine no problem."""
    eye, stack = np.eye(3), np.ones((4, 3, 3))
    pair = (lambda m: m.ravel()), (lambda y: y.reshape(3, 3))
    wrong = (lambda m: m.ravel()), (lambda y: 2 * y.reshape(3, 3))
    yield "a target of zeros", lambda: ld.factorization(0 * eye)
    yield "labels and truth missing", lambda: ld.sensing(stack)
    yield "5 labels of 4", lambda: ld.sensing(stack, np.ones(5))
    yield "labels of NaN", lambda: ld.sensing(stack, np.full(4, np.nan))
    yield "measurements of NaN", lambda: ld.sensing(stack * np.nan, np.ones(4))
    yield "one measurement matrix", lambda: ld.sensing(stack[0], np.ones(4))
    yield "functions without a shape", lambda: ld.sensing(pair, np.ones(9))
    yield "functions with a shape of 0", lambda: ld.sensing(pair, np.ones(9), shape=(0, 3))
    yield "another shape", lambda: ld.sensing(stack, np.ones(4), shape=(2, 3))
    yield "no adjoint", lambda: ld.sensing(wrong, np.ones(9), shape=(3, 3))
    yield "c = 0", lambda: ld.sensing(stack, np.ones(4), curvature=0.0)
    yield "a truth of another shape", lambda: ld.sensing(stack, np.ones(4), truth=np.eye(2))
    yield "a mask of another shape", lambda: ld.completion(eye, np.ones((2, 3), bool))
    yield "a mask of twos", lambda: ld.completion(eye, 2 * np.ones((3, 3)))
    yield "nothing observed", lambda: ld.completion(eye, np.zeros((3, 3), bool))
    yield "an observed infinity", lambda: ld.completion(np.full((3, 3), np.inf), np.ones((3, 3), bool))
    rows, columns, values = np.array([0, 1]), np.array([1, 2]), np.ones(2)
    seen = ld.observed_completion
    yield "no entry", lambda: seen(rows[:0], columns[:0], values[:0], shape=(3, 3))
    yield "3 values of 2", lambda: seen(rows, columns, np.ones(3))
    yield "rows of floats", lambda: seen(rows + 0.5, columns, values)
    yield "a row below 0", lambda: seen(rows - 1, columns, values, shape=(3, 3))
    yield "a column beyond", lambda: seen(rows, columns, values, shape=(3, 2))
    yield "an entry twice", lambda: seen(0 * rows, 0 * columns, values)
    yield "a rule that is none", lambda: seen(rows, columns, values, duplicates="last")
    yield "a value of NaN", lambda: seen(rows, columns, values * np.nan)
    problem = seen(rows, columns, np.asarray(values, setting.dtype), shape=(3, 3))
    for share in (0.0, 1.0):
        yield f"a split of {share}", lambda share=share: problem.split(share)
    yield "entries of one layer", lambda: problem.loss((jnp.eye(3),))
    yield "an error without a truth", lambda: problem.recovery_error((jnp.eye(3), jnp.eye(3)))
    key = jax.random.key(0)
    for rank in (0, 3):
        yield f"{rank} separated of 5", lambda rank=rank: separated_target(key, 5, rank)
    for name, bad in {"none": np.ones(0), "a matrix": eye, "negative": -np.ones(2), "NaN": np.full(2, np.nan),
                      "too many": np.ones(4)}.items():  # fmt: skip
        yield f"singular values: {name}", lambda bad=bad: ld.random_target(key, (3, 3), jnp.asarray(bad))
    yield "inputs of fewer dimensions", lambda: whiten(jnp.ones((2, 5)))
    yield "fewer samples than inputs", lambda: whiten(jnp.ones((5, 2)))
    yield "inputs that are not white", lambda: regression_target(2 * jnp.eye(3), jnp.ones((2, 3)))
    yield "outputs of other samples", lambda: regression_target(jnp.eye(3), jnp.ones((2, 4)))


def _solvers(setting: Setting) -> Calls:
    """Runs of no length, times that run back, initializations that have no reduction."""
    options: dict[str, Any]
    eye = jnp.eye(3, dtype=setting.dtype)
    problem, weights, rule = ld.factorization(eye), (eye, eye), ld.GradientDescent(0.1)
    train = ld.gradient_descent
    for options in ({"steps": -1}, {"steps": 1, "record_every": 0}, {"steps": 1, "callback_every": 0},
                    {"steps": 2**31 - 1}):  # fmt: skip
        yield f"descent, {options}", lambda options=options: train(problem, weights, rule, **options)
    for bad in (-0.1, np.inf, np.nan):
        yield f"η = {bad}", lambda bad=bad: ld.GradientDescent(bad)
        yield f"α = {bad}", lambda bad=bad: ld.GradientDescent(0.1, alpha=bad)
    yield "descent on a number", lambda: train(1.0, weights, rule, steps=1)  # type: ignore[arg-type]
    for clock in ([], [1.0, 0.5], [-1.0, 1.0], [0.0, np.inf], [[1.0]], [0.0]):
        yield f"flow at {clock}", lambda clock=clock: gradient_flow(problem, weights, jnp.asarray(clock))
    for options in ({"rtol": 0.0}, {"rtol": 1.0}, {"solver": "euler"}, {"max_steps": 0}, {"alpha": -1.0},
                    {"atol": -1.0}, {"atol": np.inf}):  # fmt: skip
        yield f"flow, {options}", lambda options=options: gradient_flow(
            problem, weights, jnp.asarray([1.0]), **options
        )
    stacked = (eye[None], eye[None])
    for options in ({"steps": 0}, {"steps": 1, "lanes": 0}, {"steps": 1, "check_every": 0}):
        yield f"sweep, {options}", lambda options=options: ld.sweep(problem, stacked, rule, **options)
    for options in ({"depth": 1}, {"tolerance": 0.0}, {"tolerance": 1.0}, {"patience": 0.0}):
        yield f"fit, {options}", lambda options=options: ld.fit(problem, steps=0, **options)
    key, ladder = jax.random.key(0), jnp.diag(jnp.asarray([2.0, 1.0, 0.5], setting.dtype))
    low = linalg.svd(ladder).truncate(1)
    options = {"scale": 0.5, "dtype": setting.dtype}
    yield "reduction of Gaussian layers", lambda: ld.reduce(ld.gaussian(key, (3, 3), **options), low)
    yield "reduction of a bulge", lambda: ld.reduce(ld.orthogonal(key, (3, 5, 3), **options), low)
    for name, given in {"window": {"window": eye}, "step": {"per_step": True}}.items():
        yield f"a {name} of a target", lambda given=given: ld.reduce((eye, eye), low, **given)
    yield "reduction of zeros", lambda: ld.reduce((0 * eye,), low)
    sample = ld.sample(key, 6, jnp.ones(1, setting.dtype), depth=2, scale=0.5)
    yield "Adam on a reduction", lambda: ld.reduced_descent(sample, optax.adam(0.1), steps=1)
    wide = linalg.LowRank(jnp.eye(3)[:, :1], jnp.ones(1), jnp.eye(4)[:, :1])
    identity = ld.reduction.reduce_identity
    yield "the identity of no square", lambda: identity(wide, depth=2, scale=0.5)
    for name, bad in {"depth": 0, "scale": 0.0}.items():
        given = {"depth": 2, "scale": 0.5} | {name: bad}
        yield f"the identity, {name}", lambda given=given: identity(low, **given)


def _sum_of_squares(weights):
    return jnp.sum(ld.end_to_end(weights) ** 2)


def _borders(setting: Setting) -> Calls:
    """Calls that are just inside, none of which compiles much."""
    known: dict[str, Any]
    eye: Any = np.eye(3, dtype=setting.dtype)
    parts = linalg.svd(jnp.eye(3))
    for known in ({"measurements": 1}, {"observed": 1.0}):
        yield f"surrogate's angle, {known}", lambda known=known: theory.surrogate_angle(parts, **known)
    yield "sharpness of nothing", lambda: theory.sharpness(0.0, depth=1, alpha=0.0)
    yield "r̂ of all", lambda: ld.compressed_widths(3, 3, depth=2, rank=3)
    yield "a two-cycle below one", lambda: theory.two_cycle(0.5, depth=2, learning_rate=0.1)
    yield "sharpness of a network of zeros", lambda: theory.training_sharpness(0.0, 1.0, depth=2)
    yield "time to half of a target", lambda: theory.fit_time_small_scale(1.0, depth=3, scale=0.01)
    yield "two layers of zeros", lambda: theory.two_layer_flow(1.0, 0 * eye, 0 * eye, eye)
    yield "one measurement", lambda: ld.problems.gaussian_measurements(jax.random.key(0), 1, (3, 3))
    column = jnp.ones((3, 1))
    yield "one component", lambda: ld.low_rank(column, jnp.ones(1), column)
    yield "r̂ of one", lambda: ld.compressed_widths(3, 3, depth=2, rank=1)
    yield "one hidden unit", lambda: ld.full_widths(3, 3, depth=1, hidden=1)
    yield "the smallest network", lambda: ld.widths((jnp.ones((1, 1)),))
    yield "padded to its own width", lambda: ld.pad((jnp.eye(3), jnp.eye(3)), 3)
    yield "all of the energy", lambda: linalg.estimate_rank(eye, energy=1.0)
    yield "above nothing", lambda: linalg.estimate_rank(eye, atol=0.0)
    yield "as many columns as rows", lambda: linalg.extend_orthonormal(jnp.eye(3), 3)
    yield "all observed", lambda: ld.completion(eye, np.ones((3, 3)))
    yield "one observed", lambda: ld.completion(eye, np.eye(3) * np.array([1, 0, 0]))
    yield "one entry", lambda: ld.observed_completion(np.array([0]), np.array([0]), np.ones(1))
    yield "the last row and column", lambda: ld.observed_completion(
        np.array([2]), np.array([3]), np.ones(1), shape=(3, 4)
    )
    yield "a target of one component", lambda: ld.factorization(eye * np.array([1, 0, 0], setting.dtype))
    key, half = jax.random.key(0), {"scale": 0.5, "dtype": setting.dtype}
    yield "one separated of two", lambda: separated_target(key, 2, 1)
    low = linalg.svd(jnp.diag(jnp.asarray([2.0, 1.0, 0.5], setting.dtype))).truncate(1)
    yield "reduction of orthogonal layers", lambda: ld.reduce(ld.orthogonal(key, (3, 3), **half), low)
    yield "reduction of any outer layers", lambda: ld.reduce(
        (ld.gaussian(key, (3, 6), **half)[0], *ld.orthogonal(key, (6, 6, 2), **half)), _sum_of_squares
    )
    small, turned = 1e-3 * eye, 1e-3 * eye[::-1]
    yield "two layers of one small scale", lambda: theory.two_layer_flow(1.0, small, turned, eye)
    yield "no step", lambda: theory.mode_descent(1.0, depth=1, scale=0.1, learning_rate=0.1, steps=0)
