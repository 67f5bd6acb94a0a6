"""Optimizers and solvers of the library against loops of NumPy, on small matrices."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowdim_jax as ld
from lowdim_jax.flow import gradient_flow
from lowdim_jax.trajectory import Status
from theory_checks.checks.losses import cast, data_of_problems, matrix_problems, start_of
from theory_checks.pairs import evidence_of
from theory_checks.reference import networks
from theory_checks.registry import Evidence, check
from theory_checks.runs import keep
from theory_checks.setting import Setting

STEPS, EVERY = 23, 5
RATE = 0.05

CASES: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "plain": ("dense target", (5, 4), {}),
    "α": ("factored target", (5, 3, 3, 2, 4), {"alpha": 3.0}),
    "momentum": ("sensing", (5, 3, 4), {"momentum": 0.7}),
    "Nesterov": ("completion", (5, 3, 3, 4), {"momentum": 0.7, "nesterov": True}),
    "weight decay": ("observed entries", (5, 3, 3, 4), {"weight_decay": 0.3, "alpha": 0.5}),
    "all of them": (
        "dense target", (5, 4, 4, 4), {"alpha": 2.0, "momentum": 0.6, "nesterov": True, "weight_decay": 0.2}
    ),
}  # fmt: skip
"""Optimizers, the problem and the widths that each is tried on, and its numbers."""
OPTAX: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "Adam": ("dense target", (5, 3, 4), {}),
    "by role": ("completion", (5, 3, 3, 4), {"alpha": 2.0}),
}
"""The same for optimizers that are optax's."""


@jax.jit
def _train(problems, starts, rules):
    """A run of every rule of `GradientDescent`, of Adam and of an optimizer by role."""
    adam, roles = optax.adam(RATE), ld.by_role(optax.sgd(2 * RATE), optax.sgd(RATE))
    return [
        ld.gradient_descent(
            problem, weights, {"Adam": adam, "by role": roles}.get(name, rules.get(name)), steps=STEPS,
            record_every=EVERY, observe=keep,
        )
        for name, problem, weights in zip(CASES | OPTAX, problems, starts, strict=True)
    ]  # fmt: skip


@check(
    "library-descent",
    claim="Gradient descent with every optimizer of the library, on every problem, gives in every layer the "
    "weights of a loop in NumPy: L = 1 … 4, rates of the layers, momentum, Nesterov's, weight decay, Adam; "
    "its records, its early end and a resumed run, and sweeps.",
    source="1.4, 3.2",
    controls={
        "momentum left out": {"without": "momentum"},
        "α left out": {"without": "alpha"},
        "Nesterov's step left out": {"without": "nesterov"},
        "weight decay left out": {"without": "weight_decay"},
    },
    any_target=False,
    rests_on=("reference", "library"),
)
def library_descent(setting: Setting, /, *, without="") -> Evidence:
    found = _trained(setting)
    problems = matrix_problems(setting)
    pairs: dict[str, Any] = {}
    records = [*range(0, STEPS, EVERY), STEPS]
    for (name, (problem, widths, numbers)), run in zip((CASES | OPTAX).items(), found, strict=True):
        kept = {key: value for key, value in numbers.items() if key != without}
        if "weight_decay" in kept:
            kept["decay"] = kept.pop("weight_decay")
        exact = problems[problem][1]
        train = networks.adam if name == "Adam" else networks.descent
        history = train(exact, start_of(*widths), rate=RATE, steps=STEPS, **kept)
        losses = [networks.loss_and_gradients(exact, history[step])[0] for step in records]
        pairs[f"steps, {name}"] = records, run.steps
        pairs[f"losses, {name}"] = losses, run.losses
        for layer in range(len(widths) - 1):
            pairs[f"layer {layer + 1}, {name}"] = (
                np.array([history[step][layer] for step in records]), run.observed[layer]
            )  # fmt: skip
        pairs[f"last weights, {name}"] = history[-1][-1], run.weights[-1]
        counts = [len(records), STEPS, Status.COMPLETED]
        pairs[f"counts, {name}"] = counts, [run.count, run.num_steps, run.status]
    if not without:
        pairs |= _ends(setting) | _sweeps(setting)
    return evidence_of(
        pairs,
        tolerance=setting.rounding(STEPS),
        reason=f"rounding of {STEPS} steps",
        quantity="largest difference relative to the largest entry predicted",
    )


@cache
def _trained(setting: Setting) -> list:
    problems = matrix_problems(setting)
    cases = (CASES | OPTAX).values()
    rules = {name: ld.GradientDescent(RATE, **numbers) for name, (_, _, numbers) in CASES.items()}
    starts = [tuple(cast(setting, start_of(*widths))) for _, widths, _ in cases]
    return _train([problems[name][0] for name, _, _ in cases], starts, rules)


def _ends(setting: Setting) -> dict[str, Any]:
    """A run that ends early, and one that is stopped by its callback and resumed."""
    problem, exact = matrix_problems(setting)["dense target"]
    weights = tuple(cast(setting, start_of(5, 3, 4)))
    history = networks.descent(exact, start_of(5, 3, 4), rate=RATE, steps=STEPS, momentum=0.4)
    losses = np.array([networks.loss_and_gradients(exact, network)[0] for network in history])
    settings: dict[str, Any] = {"steps": STEPS, "record_every": EVERY}
    rule = ld.GradientDescent(RATE, momentum=0.4)
    goal = float(losses[12] + losses[13]) / 2
    early = ld.gradient_descent(problem, weights, rule, tolerance=goal, **settings)
    met = ld.gradient_descent(problem, weights, rule, tolerance=float(early.losses[1]), **settings)
    called = []

    def stop(state):
        called.append(state)
        return True

    chunk = {"callback_every": 2 * EVERY - 1}  # rounded up to a record
    first = ld.gradient_descent(problem, weights, rule, callback=stop, **chunk, **settings)
    whole = ld.gradient_descent(problem, called[0], rule, **settings)
    stopped = [first.status, first.num_steps, called[0].step]
    return {
        "steps of a run that ends early": ([0, 5, 10, 15], early.steps),
        "losses of a run that ends early": (losses[[0, 5, 10, 15]], early.losses),
        "end of a run that ends early": ([Status.REACHED_TOLERANCE, 15], [early.status, early.num_steps]),
        "end at the tolerance exactly": ([Status.REACHED_TOLERANCE, 5], [met.status, met.num_steps]),
        "end of a run that is stopped": ([Status.STOPPED, 10, 10], stopped),
        "gradient where a run is stopped": (
            networks.loss_and_gradients(exact, history[10])[1][0], called[0].gradient[0]
        ),
        "steps of a run that is stopped": ([0, 5, 10], first.steps),
        "weights of a resumed run": (history[-1][0], whole.weights[0]),
        "steps of a resumed run": ([10, 15, 20, 23], whole.steps),
        "losses of a resumed run": (losses[[10, 15, 20, 23]], whole.losses),
    } | _beyond(setting)


def _beyond(setting: Setting) -> dict[str, Any]:
    """A run whose weights leave the range of numbers, alone and beside one that does not; a batch a step."""
    problem, exact = matrix_problems(setting)["dense target"]
    start = start_of(5, 3, 4)
    weights = tuple(cast(setting, start))
    with np.errstate(all="ignore"):
        history = networks.descent(exact, start, rate=2.0, steps=60)
        losses = np.array([networks.loss_and_gradients(exact, network)[0] for network in history])
    end = int(np.argmin(losses < np.finfo(setting.dtype).max))  # the first that is no number there
    run = ld.gradient_descent(problem, weights, ld.GradientDescent(2.0), steps=60, record_every=50)
    both = _two_runs(problem, weights, jnp.asarray([2.0, RATE], setting.dtype))
    last = networks.descent(exact, start, rate=RATE, steps=60)[-1]
    fixed = data_of_problems()["target"]
    batches = [networks.factorization((1 + 0.1 * step) * fixed) for step in range(STEPS + 1)]
    stepped = networks.descent(networks.alternating(batches), start, rate=RATE, steps=STEPS)
    target = cast(setting, fixed)

    def loss(weights, step):
        return jnp.sum((ld.end_to_end(weights) - (1 + step.astype(target.dtype) / 10) * target) ** 2) / 2

    def train(weights):
        rule = ld.GradientDescent(RATE)
        return ld.gradient_descent(loss, weights, rule, steps=STEPS, record_every=9, per_step=True)

    drawn, traced = train(weights), jax.jit(train)(weights)
    recorded = [0, 9, 18, 23]
    kept = [networks.loss_and_gradients(batches[k], stepped[k])[0] for k in recorded]
    return {
        "end of a run that diverges": ([Status.DIVERGED, end], [run.status, run.num_steps]),
        "status beside it": ([Status.DIVERGED, Status.COMPLETED], both.status),
        "loss beside it": (networks.loss_and_gradients(exact, last)[0], both.losses[1, -1]),
        "weights of a batch a step": (stepped[-1][0], drawn.weights[0]),
        "losses of a batch a step": (kept, drawn.losses),
        "losses of a batch a step, traced": (kept, traced.losses),
    }


@jax.jit
def _two_runs(problem, weights, rates):
    def train(rate):
        return ld.gradient_descent(problem, weights, ld.GradientDescent(rate), steps=60, record_every=20)

    return jax.vmap(train)(rates)


def _sweeps(setting: Setting) -> dict[str, Any]:
    """Runs of three rates, one after the other and two at a time."""
    problem, exact = matrix_problems(setting)["dense target"]
    start = start_of(5, 3, 4)
    rates = (0.03, 0.08, 0.05)
    histories = [networks.descent(exact, start, rate=rate, steps=STEPS) for rate in rates]
    losses = np.array([[networks.loss_and_gradients(exact, net)[0] for net in run] for run in histories])
    goal = float(losses[2, 14] + losses[2, 15]) / 2
    ends = [int(np.argmax(row <= goal)) if np.any(row <= goal) else STEPS for row in losses]
    stacked = tuple(cast(setting, [np.stack([layer] * len(rates)) for layer in start]))
    pairs = {}
    for lanes in (1, 2):
        swept = ld.sweep(
            problem, stacked, ld.GradientDescent(jnp.asarray(rates, setting.dtype)), steps=STEPS,
            tolerance=goal, lanes=lanes, check_every=4,
        )  # fmt: skip
        pairs[f"steps of a sweep, {lanes} at a time"] = ends, swept.steps
        pairs[f"losses of a sweep, {lanes} at a time"] = losses[range(len(ends)), ends], swept.losses
        last = np.array([history[end][0] for history, end in zip(histories, ends, strict=True)])
        pairs[f"weights of a sweep, {lanes} at a time"] = last, swept.weights[0]
    return pairs | _sweeps_of_data(setting, stacked)


def _sweeps_of_data(setting: Setting, stacked) -> dict[str, Any]:
    """Runs of one problem, one α, one momentum and one weight decay each."""
    sizes, numbers = (1.0, 0.5, 2.0), {"alpha": (1.0, 2.0, 0.5), "momentum": (0.0, 0.5, 0.3)}
    decays = (0.0, 0.1, 0.2)
    targets = np.array([size * data_of_problems()["target"] for size in sizes])
    rule = ld.GradientDescent(
        jnp.asarray(RATE, setting.dtype), weight_decay=cast(setting, np.array(decays)),
        **{name: cast(setting, np.array(values)) for name, values in numbers.items()},
    )  # fmt: skip
    problems = jax.vmap(ld.problems.Factorization)(cast(setting, targets))
    swept = ld.sweep(
        ld.problems.Factorization.loss, stacked, rule, steps=7, data=problems, lanes=2, check_every=3
    )
    ends = [
        networks.descent(networks.factorization(target), start_of(5, 3, 4), rate=RATE, steps=7, alpha=alpha,
                         momentum=momentum, decay=decay)[-1]
        for target, alpha, momentum, decay in zip(targets, *numbers.values(), decays, strict=True)
    ]  # fmt: skip
    return {
        "steps of a sweep over data": ([7] * 3, swept.steps),
        "first layers of a sweep over data": (np.array([end[0] for end in ends]), swept.weights[0]),
        "last layers of a sweep over data": (np.array([end[1] for end in ends]), swept.weights[1]),
    }


WAYS = "explicit", "implicit", "auto", "other"
"""How the flow is followed: by each solver, and by whatever is the default."""


@check(
    "flow-solvers",
    claim="The explicit and the implicit solver follow the gradient flow that SciPy's solver follows, with "
    "outer rate α, for known matrices and for observed entries.",
    source="2.5, 2.6, 4.1",
    controls={"α left out": {"alpha": 1.0}},
    any_target=False,
    rests_on=("reference", "library"),
)
def flow_solvers(setting: Setting, /, *, alpha=2.0, ways=WAYS) -> Evidence:
    pairs: dict[str, Any] = {}
    times = np.array([0.4, 1.5, 5.0])
    cases = {
        "explicit": ("dense target", (5, 3, 3, 4)),
        "implicit": ("dense target", (5, 3, 3, 4)),
        "auto": ("observed entries", (5, 3, 4)),
    }
    problems = matrix_problems(setting)
    runs = [(solver, alpha) for solver in cases if solver in ways]
    runs += [(solver, 0.0) for solver in ("explicit", "implicit") if solver in ways]  # the outer layers rest
    for solver, rate in runs:
        name, widths = cases[solver]
        drawn = f"{solver}, {'resting' if rate == 0 else 'moving'} outer layers"
        _, exact = problems[name]
        run = _flow(setting, solver, name, widths, 0.0 if rate == 0 else 2.0)
        history = _exact_flow(name, widths, rate, tuple(times.tolist()))
        pairs[f"times, {drawn}"] = times, run.times
        pairs[f"losses, {drawn}"] = (
            [networks.loss_and_gradients(exact, network)[0] for network in history], run.losses
        )  # fmt: skip
        for layer, measured in enumerate(run.observed):
            pairs[f"layer {layer + 1}, {drawn}"] = np.array([net[layer] for net in history]), measured
        pairs[f"last weights, {drawn}"] = history[-1][0], run.weights[0]
        pairs[f"status, {drawn}"] = Status.COMPLETED, run.status
    if "other" in ways:
        by_default, short, wrong = _others(setting)
        history = _exact_flow("dense target", (5, 3, 3, 4), 1.0, tuple(times.tolist()))
        losses = [networks.loss_and_gradients(problems["dense target"][1], net)[0] for net in history]
        pairs["losses, all by default"] = losses, by_default.losses
        pairs["last weights, all by default"] = history[-1][1], by_default.weights[1]
        pairs["a budget of ten steps"] = (
            [Status.OUT_OF_STEPS, 10, True, True], [short.status, short.num_steps, *_recorded(short)]
        )  # fmt: skip
        pairs["a start that is no number"] = Status.DIVERGED, wrong.status
    return evidence_of(
        pairs,
        tolerance=50 * setting.solver_tolerance(1e-9),
        reason="ODE solver's error per step, over some fifty steps without a steep rise",
        quantity="largest difference relative to the largest entry predicted",
    )


@cache
def _others(setting: Setting):
    """A run with every setting by default, one that takes more steps than it may, and one from NaN."""
    problem, _ = matrix_problems(setting)["dense target"]
    weights = tuple(cast(setting, start_of(5, 3, 3, 4)))
    times = jnp.asarray([0.01, 1.5, 500.0], setting.dtype)
    options: dict[str, Any] = {"solver": "explicit", "rtol": setting.solver_tolerance(1e-9), "observe": keep}
    short = gradient_flow(problem, weights, times, max_steps=10, **options)
    none = tuple(jnp.nan * layer for layer in weights)
    return (
        gradient_flow(problem, weights, cast(setting, np.array([0.4, 1.5, 5.0]))), short,
        gradient_flow(problem, none, times, max_steps=10, **options),
    )  # fmt: skip


def _recorded(run) -> list[bool]:
    """Whether a run has recorded something, and not all of three times."""
    return [len(run.times) > 0, len(run.times) < 3]


@cache
def _flow(setting: Setting, solver: Any, name: str, widths: tuple[int, ...], alpha: float):
    weights = tuple(cast(setting, start_of(*widths)))
    return gradient_flow(
        matrix_problems(setting)[name][0], weights, jnp.asarray([0.4, 1.5, 5.0], setting.dtype), alpha=alpha,
        solver=solver, rtol=setting.solver_tolerance(1e-9), observe=keep,
    )  # fmt: skip


@cache
def _exact_flow(name: str, widths: tuple[int, ...], alpha: float, times: tuple[float, ...]):
    data = data_of_problems()
    problem = networks.factorization(data["target"])
    if name == "observed entries":
        problem = networks.completion(data["target"], data["mask"])
    return networks.flow(problem, start_of(*widths), times, alpha=alpha)
