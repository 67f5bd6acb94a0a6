"""Certificates of dominance against exact fractions, long ordinary runs, and a tail bound of another kind."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from mpmath import iv

from theory_checks import certify as certification
from theory_checks.certify import Case, certify, random_case
from theory_checks.cli import main

pytest.importorskip("flint")
TENTH = Fraction(1, 10)


def small(depth=3, **changes):
    settings = {"rank": 2, "width": 20, "depth": depth, "scale": TENTH, **changes}
    return random_case(0, **settings)


def rank_one(depth, overlap=Fraction(3, 5), width=12, compressed_rank=2):
    """An overlap of 3/5 has the rational complement 4/5, so that exact fractions can follow."""
    return Case((Fraction(2),), ((overlap,),), width, depth, Fraction(1, 5), Fraction(1, 20), compressed_rank)


def exact_gap(case, steps):
    """The gap of squared errors after `steps`, in fractions, of a rank-one case with overlap 3/5."""
    (sigma,), depth = case.singular_values, case.depth
    target = [[Fraction(3, 5) * sigma, Fraction(0)], [Fraction(4, 5) * sigma, Fraction(0)]]

    def times(a, b):
        return [[sum(a[i][k] * b[k][j] for k in range(2)) for j in range(2)] for i in range(2)]

    def product(layers):
        result = [[Fraction(int(i == j)) for j in range(2)] for i in range(2)]
        for layer in layers:
            result = times(layer, result)
        return result

    def transposed(a):
        return [[a[j][i] for j in range(2)] for i in range(2)]

    def residual(layers):
        return [[x - y for x, y in zip(*rows, strict=True)]
                for rows in zip(product(layers), target, strict=True)]

    layers = [[[case.scale * int(i == j) for j in range(2)] for i in range(2)] for _ in range(depth)]
    bulk = mode = case.scale
    for _ in range(steps):
        error, moved = residual(layers), []
        for i, layer in enumerate(layers):
            after, before = product(layers[i + 1 :]), product(layers[:i])
            gradient = times(times(transposed(after), error), transposed(before))
            moved.append([[x - case.learning_rate * g for x, g in zip(*rows, strict=True)]
                          for rows in zip(layer, gradient, strict=True)])
        layers = moved
        mode += case.learning_rate * (sigma - mode**depth) * mode ** (depth - 1)
        bulk -= case.learning_rate * bulk ** (2 * depth - 1)
    square = sum(x * x for row in residual(layers) for x in row)
    idle = case.width - 1 - case.compressed_rank
    return square - (sigma - mode**depth) ** 2 + idle * bulk ** (2 * depth)


@pytest.mark.parametrize("depth", [2, 3])
def test_the_balls_contain_the_exact_gap(depth):
    import flint

    case = rank_one(depth)
    before = flint.ctx.prec
    try:
        flint.ctx.prec = 200
        _, frames = certification._rehearse(case, 1000)
        system = certification._System(flint, case, frames)
        now = system.start()
        for step in range(4):
            residual, products = system.residual(now)
            gap, _ = system.gap(now, residual)
            exact = exact_gap(case, step)
            assert gap.contains(flint.arb(flint.fmpq(exact.numerator, exact.denominator)))
            assert float(gap.rad()) < 1e-50
            now = system.step(now, residual, products)
    finally:
        flint.ctx.prec = before


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_dominance_is_proved_at_every_iteration(depth):
    certificate = certify(small(depth, scale=Fraction(3, 10)))
    assert certificate.verdict == "proved"
    assert certificate.smallest_gap > 0
    assert "at every iteration" in certificate.sentence


def simulated_gaps(case, steps):
    """Gaps of an ordinary run in float64, of the full-width networks."""
    rng = np.random.default_rng(1)
    sigma, r, d = np.array(case.singular_values, float), len(case.singular_values), case.width
    overlap = np.array(case.overlap, float)
    lower = np.linalg.cholesky(np.eye(r) - overlap @ overlap.T)
    basis = np.linalg.qr(rng.standard_normal((d, 2 * r)))[0]
    right, left = basis[:, :r], basis @ np.vstack([overlap.T, lower.T])
    target, scale, rate = left * sigma @ right.T, float(case.scale), float(case.learning_rate)
    bases = [np.linalg.svd(m)[i] for m, i in ((left, 0), (right, 0))]  # completed to whole bases
    u, v = np.hstack([left, bases[0][:, r:]]), np.hstack([right, bases[1][:, r:]])
    middle = [scale * np.eye(case.compressed_rank)] * (case.depth - 2)
    ends = scale * u[:, : case.compressed_rank], scale * v[:, : case.compressed_rank].T
    networks = [[scale * np.eye(d)] * case.depth, [ends[1], *middle, ends[0]]]

    def product(layers, size):
        return np.linalg.multi_dot([*reversed(layers), np.eye(size)]) if layers else np.eye(size)

    gaps = []
    for _ in range(steps):
        errors = []
        for n, layers in enumerate(networks):
            residual = product(layers, d) - target
            errors.append(np.sum(residual**2))
            networks[n] = [
                layer - rate * product(layers[i + 1 :], layer.shape[0]).T @ residual
                @ product(layers[:i], layer.shape[1] if i == 0 else d).T
                for i, layer in enumerate(layers)
            ]
        gaps.append(errors[0] - errors[1])
    return np.array(gaps)


def test_the_control_is_refuted_at_the_step_of_an_ordinary_full_width_run():
    case = replace(small(width=8), compressed_rank=8)  # r̂ = d > d − r
    certificate = certify(case)
    gaps = simulated_gaps(case, certificate.step + 2)
    assert certificate.verdict == "refuted"
    assert np.flatnonzero(gaps < -1e-15)[0] == certificate.step


def test_an_ordinary_run_three_times_as_long_agrees_with_the_proof():
    case = small(width=8, compressed_rank=4)
    certificate = certify(case)
    assert certificate.verdict == "proved"
    assert np.all(simulated_gaps(case, 3 * certificate.step) > 0)


@pytest.mark.parametrize("depth", [2, 3])
def test_another_tail_bound_agrees(depth):
    """Convexity instead of contraction, in another interval arithmetic, from the same step on.

    With `e = σ* − x^L ≥ 0`: below the edge's half the map is monotone on [0, x*], so x never overshoots, and
    `x₊^L ≥ x^L + L x^{L−1} (x₊ − x)` gives `e₊ ≤ e (1 − L η x^{2L−2})`. And `ρ^{2−2L}` grows by at most
    `η (2L − 2) / (1 − a)^{2L−1}` a step, `a = η ρ^{2L−2}`: the idle directions decay algebraically.
    """
    case = small(depth, edge_fraction=Fraction(1, 4))
    certificate = certify(case)
    iv.prec = 900
    rate = iv.mpf(case.learning_rate.numerator) / case.learning_rate.denominator
    scale = iv.mpf(case.scale.numerator) / case.scale.denominator
    bulk, modes = scale, [scale, scale]
    sigma = [iv.mpf(s.numerator) / s.denominator for s in case.singular_values]
    for _ in range(certificate.step):
        modes = [x + rate * (s - x**depth) * x ** (depth - 1) for x, s in zip(modes, sigma, strict=True)]
        bulk = bulk * (1 - rate * bulk ** (2 * depth - 2))
    assert (1 - depth * rate * sigma[0] ** (2 - iv.mpf(2) / depth)).a > 0  # f′ on [0, x*] is at least this
    errors = [s - x**depth for x, s in zip(modes, sigma, strict=True)]
    assert all(e.a > 0 for e in errors)
    shrink = max((1 - depth * rate * x ** (2 * depth - 2)).b for x in modes)
    a = rate * bulk ** (2 * depth - 2)
    growth = rate * (2 * depth - 2) / (1 - a) ** (2 * depth - 1)
    idle = case.width - 2 - case.compressed_rank
    # ln of both sides j steps on: the left falls by −2 ln(shrink), the right by at most its slope at j = 0.
    assert (sum(e * e for e in errors) - idle * bulk ** (2 * depth)).b < 0
    slope = iv.mpf(2 * depth) / (2 * depth - 2) * growth * bulk ** (2 * depth - 2)
    assert (2 * iv.log(iv.mpf(shrink)) + slope).b < 0


def test_without_idle_directions_to_spare_nothing_is_claimed_beyond_the_last_step():
    certificate = certify(small(width=8, compressed_rank=6), max_steps=250)  # r̂ = d − r
    assert certificate.verdict == "undecided"
    assert "for iterations 0 to 250 only" in certificate.sentence


def test_a_precision_too_low_is_doubled_until_it_decides():
    assert certify(small(), bits=64).verdict == "proved"
    assert certify(small(), bits=64).bits > 64


def test_what_is_no_case_is_refused():
    with pytest.raises(ValueError, match="singular_values=1, 2, expected positive and decreasing"):
        small(singular_values=[Fraction(1), Fraction(2)])
    with pytest.raises(ValueError, match="width=3, expected at least 2r = 4"):
        small(width=3)
    with pytest.raises(ValueError, match="spectral norm of 1 or more"):
        certify(rank_one(3, overlap=Fraction(1)))


def test_the_command_says_what_it_proved_in_a_sentence(capsys):
    assert main(["certify", "--width", "20", "--scale", "0.3"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("Proved for σ* = 20, 9, d = 20")
    assert "at every iteration" in said[0]
    assert said[1].startswith("Control, r̂ > d − r. Refuted")
    assert main(["certify", "--compressed-rank", "8", "--width", "8", "--no-control"]) == 1
    assert main(["certify", "--singular-values", "1,2"]) == 2
