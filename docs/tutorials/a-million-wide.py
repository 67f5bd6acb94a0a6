# %% [markdown]
# # A network a million wide
#
# The original network, square and orthogonally started, moves in `2r` dimensions only: everything it does to a target of rank
# `r` is done by a network of width `2r`, *exactly* (docs/theory.md 3.2). So its width costs nothing. Here the target has the
# spectrum of real data, scikit-learn's handwritten digits.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import lowdim_jax as ld

jax.config.update("jax_enable_x64", True)

pixels = load_digits().data
pixels = (pixels - pixels.mean(0)) / 1000
singular_values = np.linalg.svd(pixels, compute_uv=False)
kept = singular_values[:8]
print("leading singular values", kept.round(3), f"({np.sum(kept**2) / np.sum(singular_values**2):.0%} of the variance)")

# %% [markdown]
# ## First, that it is exact
#
# A network of width 100 that is trained as it is, and its reduction to width 16.

# %%
target = ld.random_target(jax.random.key(0), (100, 100), jnp.asarray(kept))
weights = ld.orthogonal(jax.random.key(1), (100, 100, 100, 100), scale=0.05)
rate = 0.5 * ld.theory.max_learning_rate(kept[0], depth=3)
full = ld.gradient_descent(ld.factorization(target), weights, ld.GradientDescent(rate), steps=500, record_every=50)
reduction = ld.reduce(weights, target)
small = ld.reduced_descent(reduction, ld.GradientDescent(rate), steps=500, record_every=50)
print("loss of the wide network ", full.losses[-1])
print("loss of the reduced one  ", small.losses[-1])
lifted = reduction.lift(small.weights)
print("largest difference in all weights", max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(full.weights, lifted)))

# %% [markdown]
# ## Then, a million
#
# `sample` draws the random part of a network of any width without a wide matrix. Three layers of width 10⁶ would be
# 3·10¹² numbers.

# %%
figure, axes = plt.subplots()
colours = {100: "C0", 10_000: "C1", 1_000_000: "C2"}
for width, colour in colours.items():
    begin = time.perf_counter()
    reduction = ld.sample(jax.random.key(2), width, jnp.asarray(kept), depth=3, scale=0.05)
    observe = lambda layers: ld.spectra.singular_values(ld.reduction.cores(layers), rank=8)
    run = ld.reduced_descent(reduction, ld.GradientDescent(rate), steps=1000, record_every=4, observe=observe)
    jax.block_until_ready(run.losses)
    print(f"width {width:>9,}: {time.perf_counter() - begin:.1f} s with compilation, {run.message}")
    axes.plot(run.steps, run.observed[:, :4], color=colour, alpha=0.8, linewidth=1.5)
    axes.plot([], [], color=colour, label=f"width {width:,}")
axes.set(xlabel="iteration", ylabel="singular value", title="Four components of the digits, three widths")
_ = axes.legend()

# %% [markdown]
# Wide networks agree with each other: the wider they are, the less they depend on the random start. What is left of the start
# are overlaps of size `1/√d` between random and target directions.
