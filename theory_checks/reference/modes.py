"""One singular value under gradient flow and descent, in closed form at 30 digits (docs/theory.md 2, 4, 5).

Numbers are given as floats or `mpf` and come back as `mpf`; singular values are `σ = x_1 ⋯ x_L` of factors
that start at `ε`.
"""

from collections.abc import Callable, Sequence

import mpmath
import numpy as np
import scipy  # which loads its parts on first use
from mpmath import mp, mpf

DIGITS = 30


def precisely(function: Callable) -> Callable:
    """Run a function at 30 digits."""

    def run(*arguments, **options):
        with mp.workdps(DIGITS):
            return function(*arguments, **options)

    run.__doc__ = function.__doc__
    run.__name__ = function.__name__
    return run


# --- Flow -----------------------------------------------------------------------------------------


@precisely
def mode_time(level, target, *, depth: int, scale, alpha=1) -> mpf:
    """Flow time from `ε^L` to `level`: 2.2 in its ₂F₁ form for `α = 1`, the integral of 2.5 otherwise."""
    level, target, scale, alpha = map(mpf, (level, target, scale, alpha))
    start = scale**depth
    if depth <= 2 or alpha == 1:
        clock = alpha if depth <= 2 else mpf(1)  # for L ≤ 2 all factors are outer ones
        return (_antiderivative(level, target, depth) - _antiderivative(start, target, depth)) / clock

    def speed(log_y):  # of ln y, y = x_m
        y = mpmath.exp(log_y)
        outer = alpha * y**2 + (1 - alpha) * scale**2
        return outer * y ** (depth - 4) * (target - outer * y ** (depth - 2))

    goal = mpmath.log(middle_factor(level, depth=depth, scale=scale, alpha=alpha))
    nodes = _graded(mpmath.log(scale), goal)
    return mpf(mpmath.quad(lambda log_y: 1 / speed(log_y), nodes, method="gauss-legendre"))


def _antiderivative(sigma: mpf, target: mpf, depth: int) -> mpf:
    """`F` with `dF/dσ = 1 / (L σ^{2−2/L} (σ* − σ))`, on either side of the target."""
    if target == 0:
        power = 2 - mpf(2) / depth
        return -mpmath.log(sigma) if depth == 1 else sigma**-power / (depth * power)
    if depth == 2:
        return mpmath.log(sigma / abs(target - sigma)) / (2 * target)
    if depth > 2 and sigma > target:  # far above, the form below would be a constant to many digits
        b = 2 - mpf(2) / depth
        return mpmath.re(sigma**-b / (depth * b) * mpmath.hyp2f1(1, b, b + 1, target / sigma))
    x, a = mpmath.root(sigma, depth), mpf(2 - depth) / depth
    series = mpmath.hyp2f1(1, a, a + 1, sigma / target)
    return mpmath.re(x ** (2 - depth) / ((2 - depth) * target) * series)


def _graded(start: mpf, end: mpf) -> list[mpf]:
    """Nodes that double their distance from either end: the integrand may be singular just beyond it."""
    near = [mpf(2) ** -k for k in range(10, 0, -1)]
    fractions = [mpf(0), *near, *(1 - fraction for fraction in reversed(near[:-1])), mpf(1)]
    return [start + fraction * (end - start) for fraction in fractions]


@precisely
def middle_factor(sigma, *, depth: int, scale, alpha) -> mpf:
    """`x_m` where the product is `σ`: `x_o² = α x_m² − (α − 1) ε²`, `x_o² x_m^{L−2} = σ`, by bisection."""
    sigma, scale, alpha = map(mpf, (sigma, scale, alpha))
    low = scale * mpmath.sqrt(max(mpf(0), 1 - 1 / alpha)) if alpha > 0 else mpf(0)
    high = scale + mpmath.root(sigma, depth) + sigma / scale ** (depth - 1)
    while True:
        y = (low + high) / 2
        if y in (low, high):
            return y
        too_large = (alpha * y**2 + (1 - alpha) * scale**2) * y ** (depth - 2) > sigma
        low, high = (low, y) if too_large else (y, high)


@precisely
def mode_value(t, target, *, depth: int, scale, alpha=1) -> mpf:
    """`σ(t)`: the level that `mode_time` takes `t` to reach."""
    t, target, start = mpf(t), mpf(target), mpf(scale) ** depth
    if t == 0 or start == target:
        return start

    def level(s):  # from the start at s = 0 towards the target as s grows
        if start < target:
            return target / (1 + (target - start) / start * mpmath.exp(-s))
        return target + (start - target) * mpmath.exp(-s)

    def gap(s):
        return mode_time(level(s), target, depth=depth, scale=scale, alpha=alpha) - t

    low, high = mpf(0), mpf(1)
    while gap(high) < 0:
        low, high = high, 2 * high
    return level(mpmath.findroot(gap, (low, high), solver="anderson", tol=1e-40 * t**2, verify=False))


def mode_values(times: Sequence[float], target: float, *, depth: int, scale: float, alpha: float = 1.0):
    """`σ` at many times to 1e-11, by SciPy's solver: `ẋ_l = α_l (σ* − σ) σ / x_l` for the logarithms."""
    rates = np.ones(depth)
    rates[[0, -1]] = alpha

    def velocity(_, logs):
        sigma = np.exp(np.sum(logs))
        return rates * (target - sigma) * sigma * np.exp(-2 * logs)

    run = scipy.integrate.solve_ivp(
        velocity, (0.0, float(times[-1])), np.full(depth, np.log(scale)), method="LSODA", t_eval=times,
        rtol=1e-12, atol=1e-13,
    )
    return np.exp(np.sum(run.y, axis=0))


@precisely
def fit_time(target, *, depth: int, scale, tolerance, alpha=1) -> mpf:
    """Time from which on `|σ − σ*| ≤ c σ*` (1.6)."""
    target, tolerance, start = mpf(target), mpf(tolerance), mpf(scale) ** depth
    if abs(start - target) <= tolerance * target:
        return mpf(0)
    side = -1 if start < target else 1
    if target == 0:
        return mpf("inf")
    return mode_time(target * (1 + side * tolerance), target, depth=depth, scale=scale, alpha=alpha)


@precisely
def leading_fit_time(target, *, depth: int, scale, tolerance) -> mpf:
    """Its leading order as `ε → 0` (2.4)."""
    target, scale, c = map(mpf, (target, scale, tolerance))
    if depth == 1:
        return -mpmath.log(c)
    if depth == 2:
        return (mpmath.log(target / scale**2) + mpmath.log((1 - c) / c)) / (2 * target)
    return 1 / ((depth - 2) * target * scale ** (depth - 2))


@precisely
def rate(sigma, target, *, depth: int) -> mpf:
    """`σ̇ = L σ^{2−2/L} (σ* − σ)`."""
    sigma, target = mpf(sigma), mpf(target)
    return mpf(depth * sigma ** (2 - mpf(2) / depth) * (target - sigma))


def plateaus(targets: Sequence[float]) -> list[mpf]:
    """Losses `½ Σ_{j>i} σ*_j²` while the first `i` components are fitted."""
    return [sum((mpf(s) ** 2 / 2 for s in targets[i:]), mpf(0)) for i in range(len(targets) + 1)]


# --- Descent --------------------------------------------------------------------------------------


def mode_descent(
    target: float, *, depth: int, scale: float, learning_rate: float, steps: int, alpha: float = 1.0
) -> list[float]:
    """`σ` before the first step and after every step of descent on `L` scalar factors, in float64 (2.1)."""
    factors = [scale] * depth
    rates = [1.0] * depth
    rates[0] = rates[-1] = alpha
    history = []
    for _ in range(steps + 1):
        sigma = 1.0
        for x in factors:
            sigma *= x
        history.append(sigma)
        moves = []
        for layer in range(depth):
            others = 1.0
            for other in range(depth):
                if other != layer:
                    others *= factors[other]
            moves.append(rates[layer] * learning_rate * (target - sigma) * others)
        factors = [x + move for x, move in zip(factors, moves, strict=True)]
    return history


@precisely
def two_cycle(target, *, depth: int, learning_rate) -> tuple[mpf, mpf]:
    """The two `σ` that descent alternates between: found by descent, then `f(f(x)) = x` by Newton (5.3)."""
    target, eta = mpf(target), mpf(learning_rate)
    limit = mpmath.root(target, depth)
    if eta <= 2 / (depth * target ** (2 - mpf(2) / depth)):
        return target, target

    def step(x):
        return x + eta * (target - x**depth) * x ** (depth - 1)

    x, goal, speed = float(limit) * 1.01, float(target), float(eta)
    for _ in range(20_000):
        x = x + speed * (goal - x**depth) * x ** (depth - 1)
    x = mpmath.findroot(lambda x: (step(step(x)) - x) / (x - limit), mpf(x), verify=False)
    low, high = sorted((x, step(x)))
    return low**depth, high**depth


@precisely
def sharpness(top, *, depth: int, alpha=1) -> mpf:
    """`Σ_l α_l (σ*/x_l)²` at the minimum that `ε → 0` reaches: `x_o = √α x_m` (5.1, 5.2)."""
    top, alpha = mpf(top), mpf(alpha)
    if depth <= 2:
        return alpha * depth * top ** (2 - mpf(2) / depth)
    middle = mpmath.root(top / alpha, depth)
    outer = mpmath.sqrt(alpha) * middle
    return 2 * alpha * (top / outer) ** 2 + (depth - 2) * (top / middle) ** 2


def balances(factors: Sequence[float]) -> list[list[mpf]]:
    """`x_i² − x_j²` of every pair."""
    return [[mpf(a) ** 2 - mpf(b) ** 2 for b in factors] for a in factors]


@precisely
def descent_step(factors: Sequence[float], target, learning_rate) -> list[mpf]:
    """One step of descent on unequal scalar factors."""
    before = [mpf(x) for x in factors]
    push = mpf(learning_rate) * (mpf(target) - mpmath.fprod(before))
    return [x + push * mpmath.fprod(before[:i] + before[i + 1 :]) for i, x in enumerate(before)]
