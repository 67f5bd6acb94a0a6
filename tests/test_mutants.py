"""The suite catches a library broken on purpose. Opt-in, minutes long: `pytest -m mutants`.

Each mutant is one edit of the source in a copy of the packages; the checks named have to fail there.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from theory_checks.selection import all_checks

ROOT = Path(__file__).parents[1]

# What is broken, file, text, its replacement, the checks that have to notice.
MUTANTS = [
    ("loss without its half", "problems/matrix_factorization", "weights) / 2\n", "weights)\n", "scalar-map"),
    ("sign of the target", "problems/base", "- 2 * overlap", "+ 2 * overlap", "scalar-map"),
    ("sign of the middle rates", "optimizers", '"middle": -self', '"middle": self', "scalar-map"),
    ("α dropped in training", "optimizers", "-self.alpha * self.learning_rate", "-self.learning_rate",
     "edge-of-stability"),
    ("α on the middle layers", "optimizers", '"middle": -self.learning_rate',
     '"middle": -self.alpha * self.learning_rate', "edge-of-stability"),
    ("recording one step late", "descent", "state.step + record_every, end)",
     "state.step + record_every + 1, end)", "scalar-map"),
    ("two steps counted for one", "descent", "number = state.step + 1", "number = state.step + 2",
     "scalar-map"),
    ("gradient of the weights before", "descent", "optimizer.update(state.gradient,",
     "optimizer.update(jax.tree.map(jnp.zeros_like, state.gradient),", "scalar-map"),
    ("outer factors transposed", "initialization", "(scale * right.T, *middle, scale * left)",
     "(scale * left.T, *middle, scale * right)", "scalar-map"),
    ("middle factors without ε", "initialization", "middle = (scale * xp.eye(", "middle = (xp.eye(",
     "scalar-map"),
    ("wrong ε of orthogonal layers", "initialization", "return scale * draw(",
     "return scale**2 * draw(", "block-structure"),
    ("surrogate's vectors in reversed order", "initialization",
     "left, right = parts.left[:, :rank], parts.right[:, :rank]",
     "left, right = parts.left[:, :rank], parts.right[:, :rank][:, ::-1]", "scalar-map"),
    ("exponent of the mode law", "theory/_series", "jnp.exp((2 / depth - 1) * log_q)",
     "jnp.exp((1 / depth - 1) * log_q)", "closed-forms"),
    ("depth in the mode law", "theory/_series", "constant - (log_p + series) / depth)",
     "constant - (log_p + series) / (depth + 1))", "closed-forms"),
    ("conserved quantity of discrepant rates", "theory/_mode", "a = jnp.where(slow, alpha, 1 /",
     "a = jnp.where(slow, alpha**2, 1 /", "closed-forms"),
    ("discrepant descent map", "theory/_mode", "new_outer = outer + alpha * push",
     "new_outer = outer + 2 * push",
     "closed-forms"),
    ("small-scale exponent", "theory/modes", "mode.scale ** (2 - depth)", "mode.scale ** (1 - depth)",
     "closed-forms"),
    ("plateaus without their half", "theory/modes", "targets[::-1] ** 2 / 2", "targets[::-1] ** 2",
     "stability-formulas"),
    ("singular value rate", "theory/conservation", "depth * sigma ** (2 - 2 / depth) * aligned",
     "depth * sigma ** (2 - 1 / depth) * aligned", "stability-formulas"),
    ("exponent of the sharpness", "theory/stability", "depth * top ** (2 - 2 / depth)",
     "depth * top ** (2 - 1 / depth)", "stability-formulas"),
    ("exponent of α", "theory/stability", "min(1.0, 2 / depth)", "min(1.0, 1 / depth)", "edge-of-stability"),
    ("edge without its two", "theory/stability", "as_array(2 / on_host(", "as_array(1 / on_host(",
     "edge-of-stability"),
    ("sign of the balance", "theory/two_layers", "half = balance / 2", "half = -balance / 2",
     "two-layer-flow"),
    ("decay of two layers", "theory/two_layers", "jnp.sqrt(time * mean)", "jnp.sqrt(2 * time * mean)",
     "two-layer-flow"),
    ("kernel of one layer", "theory/two_layers", "return inner + jnp.einsum(",
     "return inner + 0 * jnp.einsum(", "two-layer-flow"),
    ("turn of the singular vectors", "theory/original_mode", "-target * turn,", "-2 * target * turn,",
     "original-mode"),
    ("sign of the overlap", "theory/original_mode", "tilt = (jnp.log1p(-overlap) - jnp.log1p(overlap)) / 2",
     "tilt = (jnp.log1p(overlap) - jnp.log1p(-overlap)) / 2", "original-mode"),
    ("limit of the two-cycle", "theory/stability", "[1] > -1, 1e-3", "[1] > 0, 1e-3", "beyond-the-edge"),
    ("exponent of the sign change", "theory/stability", "* highest ** (depth - 2) > 0",
     "* highest ** (depth - 1) > 0", "beyond-the-edge"),
    ("two-cycle's exponent", "theory/stability", "return (1 + z ** (depth - 1))",
     "return (1 + z ** depth)", "stability-formulas"),
    ("sign of the balance drift", "theory/conservation", "* (1 - drift**2)", "* (1 + drift**2)",
     "stability-formulas"),
    ("steps of a stiff run", "theory/stability", "return wait * sharpness(", "return wait / sharpness(",
     "stability-formulas"),
    ("rates of the flow", "_integration", 'by_role = {"outer": jnp.asarray(alpha, dtype)',
     'by_role = {"outer": jnp.ones((), dtype)', "discrepant-modes"),
    ("bulk forgotten in a layer", "reduction", "+ layer.bulk * live", "+ 0 * live", "lossless-reduction"),
    ("bulk pushed by all its directions", "reduction", "* jax.lax.stop_gradient(bulk))", "* bulk)",
     "lossless-reduction"),
    ("basis without the left vectors", "_isometries", "[forward[-1], backward[-1]]",
     "[forward[-1], forward[-1]]", "lossless-reduction"),
    ("core lifted transposed", "reduction", "after @ layer.core @ before.T +",
     "after @ layer.core.T @ before.T +", "lossless-reduction"),
    ("same vectors on both sides", "problems/targets", "return LowRank(left, -jnp.sort",
     "return LowRank(right, -jnp.sort", "haar-overlap"),
    ("regression target doubled", "problems/targets", "svd(outputs @ inputs.T)",
     "svd(2 * outputs @ inputs.T)",
     "whitened-data"),
    ("widths one too large", "networks", "return (d_in, *(rank,) * (depth - 1), d_out)",
     "return (d_in, *(rank + 1,) * (depth - 1), d_out)", "parameter-count"),
    ("merged layer turned round", "nn/layers", "lambda *_: self.kernel.astype",
     "lambda *_: self.kernel[::-1].astype", "merge"),
    ("loss of the bulk forgotten", "reduction", "bulk + (self.bulk_count - 1) *",
     "bulk + 0 * (self.bulk_count - 1) *", "prediction-against-device"),
    ("idle bulk forgotten", "reduction", "+ layer.idle * idle", "+ 0 * layer.idle * idle",
     "rectangular-reduction"),
    ("what is outside the cores dropped", "window", "layer.rest * (start - inside)",
     "0 * layer.rest * (start - inside)", "window-reduction"),
    ("hidden bases without the outputs", "window", "_isometries.bases(frames, left, right)",
     "_isometries.bases(frames, right, right)", "window-reduction"),
    ("ends without the target's vectors", "_isometries", "columns = u[:, : int(present.sum())]",
     "columns = u[:, :0]", "compressed-reduction"),
    ("weight decay halved", "optimizers", "add_decayed_weights(self.weight_decay)",
     "add_decayed_weights(self.weight_decay / 2)", "block-structure"),
    ("last layer counted as a middle one", "networks", "index in (0, last)",
     "index in (0, last + 1)", "edge-of-stability"),
    ("product in single precision", "problems/base",
     "return jnp.sum((end_to_end(weights) - dense(target)) ** 2)",
     'product = end_to_end(weights).astype("float32").astype(target.dtype)\n'
     "        return jnp.sum((product - dense(target)) ** 2)",
     "matmul-precision"),
    ("modes of the transposed network", "spectra", "(a.T @ target.left) * (b @ target.right)",
     "(a.T @ target.right) * (b @ target.left)", "small-start"),
    ("fit time from the other side", "theory/modes", "jnp.where(above, 1 + share, 1 - share)",
     "jnp.where(above, 1 - share, 1 + share)", "closed-forms"),
    ("inputs scaled instead of whitened", "problems/targets", "return left @ right\n",
     "return left @ (sigma[:, None] * right)\n", "whitened-data"),
    ("sensing loss without its half", "problems/matrix_sensing",
     "return half(matrix) / self", "return 2 * half(matrix) / self", "surrogate"),
    ("sign of the sensing surrogate", "problems/matrix_sensing", "return self.operator.adjoint(self.labels)",
     "return -self.operator.adjoint(self.labels)", "surrogate"),
    ("adjoint of sensing transposed", "problems/matrix_sensing", ".reshape(self.shape).astype(y.dtype)",
     ".reshape(self.shape).T.astype(y.dtype)", "surrogate-accuracy"),
    ("measurements of variance one", "problems/matrix_sensing",
     "jax.random.normal(key, shape, dtype) / m**0.5",
     "jax.random.normal(key, shape, dtype)", "surrogate-accuracy"),
    ("completion loss without 1/p", "problems/matrix_completion",
     "jnp.sum(misfit**2) / (2 * self.fraction.astype(matrix.dtype))", "jnp.sum(misfit**2) / 2", "surrogate"),
    ("completion surrogate without 1/p", "problems/matrix_completion", "return self.values / self.fraction",
     "return self.values", "surrogate-accuracy"),
    ("mask dropped in the loss", "problems/matrix_completion",
     "jnp.where(self.mask, matrix - self.values.astype(matrix.dtype), 0)",
     "matrix - self.values.astype(matrix.dtype)", "completion-recovery"),
    ("sign of the surrogate of a loss", "compression", "return -jax.grad(matrix_loss)",
     "return jax.grad(matrix_loss)", "library-starts"),
    ("energies not squared", "nn/updates", "energies = update.singular_values**2",
     "energies = update.singular_values", "nonlinear-low-rank-updates"),
    # The quick loop, which makes a gradient in the step that uses it.
    ("gradient of the batch after", "descent", "gradient = jax.grad(loss)(weights, *((number,) if",
     "gradient = jax.grad(loss)(weights, *((number + 1,) if", "library-descent"),
    ("loss of the batch before", "descent", "    value = loss(weights, *((number,) if per_step",
     "    value = loss(weights, *((number - 1,) if per_step", "library-descent"),
    ("one step beyond a record", "descent", "lambda carry: carry[0] < goal", "lambda carry: carry[0] <= goal",
     "library-descent"),
    ("momentum forgotten at every record", "descent", "state.weights, state.optimizer_state\n    number,",
     "state.weights, optimizer.init(state.weights)\n    number,", "library-descent"),
    ("tolerance overlooked", "descent", " & (state.loss > tolerance)\n\n", "\n\n", "library-descent"),
    ("handed over without its gradient", "descent", "if resumable and not every_step:", "if every_step:",
     "library-descent"),
    # What survived when a stranger broke the library.
    ("identity for a Haar matrix", "initialization", "scale, dtype, _orthogonal)",
     "scale, dtype, _identity)", "haar-layers"),
    ("reduction to the whole space", "_isometries",
     "chain = [xp.linalg.qr(xp.concatenate([forward[-1], backward[-1]], axis=1))[0]]",
     "chain = [identity(right, len(forward[-1]))]", "rectangular-reduction"),
    ("Nesterov's momentum ignored", "optimizers", "nesterov=self.nesterov", "nesterov=False",
     "library-descent"),
    ("α squared in the descent of a mode", "theory/_mode", "alpha = 1 if mode.alpha is None else mode.alpha",
     "alpha = 1 if mode.alpha is None else mode.alpha**2", "closed-forms"),
    ("small-scale law of depth 2", "theory/modes", "depth == 2:", "depth == 20:", "closed-forms"),
    ("implicit solver too fast", "_integration", "(starts, -end * rates * gradient(y), 0)",
     "(starts, -(1.02 if implicit else 1.0) * end * rates * gradient(y), 0)", "flow-solvers"),
    ("half a gradient of observed entries", "problems/matrix_completion",
     "jnp.vdot(gradient_b, tangents[1])", "jnp.vdot(gradient_b, tangents[1]) / 2",
     "losses-and-gradients"),
]  # fmt: skip


def run_mutant(folder, module, text, replacement, checks):
    """Copy the packages, edit one place, run the checks there."""
    for package in ("lowdim_jax", "theory_checks"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "lowdim_jax" / f"{module}.py"
    source = path.read_text("utf-8")
    assert source.count(text) == 1, "the mutation is not of one place"
    path.write_text(source.replace(text, replacement), "utf-8")
    only = [part for name in checks.split() for part in ("--only", name)]
    return subprocess.run(
        [sys.executable, "-m", "theory_checks", "run", "--seeds", "1", "--out", str(folder), *only],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant[0].replace(" ", "-") for mutant in MUTANTS])
def test_a_mutant_is_an_edit_of_one_place_and_has_a_check(mutant):
    _, module, text, replacement, checks = mutant
    assert (ROOT / "lowdim_jax" / f"{module}.py").read_text("utf-8").count(text) == 1
    assert text != replacement
    assert set(checks.split()) <= {check.name for check in all_checks()}


@pytest.mark.mutants
@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant[0].replace(" ", "-") for mutant in MUTANTS])
def test_the_suite_notices(mutant, tmp_path):
    done = run_mutant(tmp_path, *mutant[1:])
    # 1: a check failed. A crash of the command itself, or bad input (2), would be no evidence.
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.mutants
def test_the_unbroken_copy_passes(tmp_path):
    text = "weights) / 2\n"
    every = " ".join({mutant[-1] for mutant in MUTANTS})
    done = run_mutant(tmp_path, "problems/matrix_factorization", text, text, every)
    assert done.returncode == 0, done.stdout[-2000:]
