"""The problems that the benchmarks time, and the same in the peer's terms (imported, none of it copied)."""

import contextlib
import io
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np

import lowdim_jax as ld

RANK, DEPTH, SCALE = 10, 3, 0.1
SIGMA = np.linspace(20.0, 9.0, RANK)
RATE = 0.5 * 2 / (DEPTH * SIGMA[0] ** (2 - 2 / DEPTH))
NETWORKS = ("original dense", "reduced", "compressed dense", "compressed factored", "compressed reduced")


def factorization(network: str, d: int):
    """Loss and initial weights of one of `NETWORKS` on a target of rank 10."""
    if network == "reduced":
        reduction = ld.sample(jax.random.key(2), d, jnp.asarray(SIGMA), depth=DEPTH, scale=SCALE)
        return reduction.problem.loss, reduction.layers
    target = ld.random_target(jax.random.key(0), (d, d), jnp.asarray(SIGMA))
    problem = ld.factorization(target if network.endswith("factored") else target.dense())
    if network.startswith("original"):
        return problem.loss, ld.orthogonal(jax.random.key(1), (d,) * (DEPTH + 1), scale=SCALE)
    weights = ld.compress(target, depth=DEPTH, scale=SCALE, rank=2 * RANK)
    if network.endswith("reduced"):
        reduction = ld.reduce(weights, target)
        return reduction.problem.loss, reduction.layers
    return problem.loss, weights


def steps_of(network: str, d: int, *, seconds: float) -> int:
    """About as many steps as take so long at 30 GFLOP/s and 10 µs a step."""
    operations = {"original dense": 18 * d**3, "compressed dense": 160 * d**2}.get(network, 5000 * d)
    if network.endswith("reduced"):
        operations = 0
    return max(5, min(20_000, int(seconds / (operations / 3e10 + 1e-5))))


def sensing(d: int, m: int):
    """Gaussian measurements of a rank-5 matrix, and a compressed network."""
    target = ld.separated_target(jax.random.key(0), d, 5).dense()
    problem = ld.sensing(ld.gaussian_measurements(jax.random.key(1), m, (d, d)), truth=target)
    return problem, ld.compress(problem, depth=DEPTH, scale=0.01, rank=10)


def completion(d: int, p: float = 0.3, seed: int = 0):
    """A rank-5 matrix with separated spectrum, as in the paper, and which entries are observed; NumPy."""
    rng = np.random.default_rng(seed)
    left, sigma, right = np.linalg.svd(rng.standard_normal((d, d)))
    keep = np.arange(5) * d // 10
    return (left[:, keep] * sigma[keep]) @ right[keep], rng.random((d, d)) < p


OBSERVED_SHAPE, OBSERVED_RANK = (16_200, 5_900), 20


def observations(count: int, shape: tuple[int, int], rank: int):
    """Completion of random observed entries, and a compressed network from a random start."""
    rng = np.random.default_rng(0)
    places = np.unique(rng.integers(0, shape[0] * shape[1], count))
    values = rng.standard_normal(len(places))
    problem = ld.observed_completion(*divmod(places, shape[1]), values, shape=shape)
    return problem, ld.gaussian(jax.random.key(0), (shape[1], rank, rank, shape[0]), scale=0.1)


# --- The peer's code on the same problems ---------------------------------------------------------


def peer_steps(loss, weights, rate: float, *, steps: int, rounds: int = 5, alpha: float = 1.0) -> list[float]:
    """Seconds a step of the peer's training loop, once for each round after the one that compiles."""
    from network import compute_end_to_end  # pyright: ignore[reportMissingImports]
    from solver import train  # pyright: ignore[reportMissingImports]

    with quietly():
        losses = {"train": loss}
        result = train(
            list(weights), compute_end_to_end, losses, rounds + 1, rate, dlr=alpha, n_inner_loops=steps
        )
    return list(np.diff(np.asarray(result["time"]))[1:] / steps)


def peer_completion(target, mask) -> float:
    """Seconds from data to training loss 1e-12 with the peer's hand-tuned rate and α."""
    from loss import create_loss  # pyright: ignore[reportMissingImports]
    from network import compute_end_to_end, kwon_compress_network  # pyright: ignore[reportMissingImports]
    from solver import train  # pyright: ignore[reportMissingImports]

    with quietly():
        start = time.perf_counter()
        target, mask = jnp.asarray(target), jnp.asarray(mask, float)
        parts, _ = kwon_compress_network(target * mask / 0.3, 10, 1e-2, 3)
        weights = [parts[1] @ parts[0], parts[2], parts[4] @ parts[3]]
        losses = {"train": create_loss(target, mask=mask)}
        result = train(weights, compute_end_to_end, losses, 2000, 10.0, dlr=5.0, tol=1e-12, n_inner_loops=50)
        seconds = time.perf_counter() - start
    assert result["train_loss"][-1] < 1e-12
    return seconds


def our_completion(target, mask) -> float:
    """Seconds from data to the same loss, nothing given but the data."""
    completion, fit = ld.completion, ld.fit  # which are imported on first use
    start = time.perf_counter()
    fit = fit(completion(target, mask))
    seconds = time.perf_counter() - start
    assert fit.losses[-1] / target.size < 1e-12  # the peer's loss is a mean over entries
    return seconds


@contextlib.contextmanager
def quietly():
    """Without the peer's progress bars and warnings."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
