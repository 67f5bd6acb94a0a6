# %% [markdown]
# # Watch a network learn one component at a time
#
# A deep linear network is a product of matrices, `W = W_L ⋯ W_1`. Trained by gradient descent from a small start, it finds the
# singular values of its target one after another, and a formula says when. Here two networks do it, from zero: the *original*,
# as wide as the matrix, and the *compressed* one, as narrow as twice the rank.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import lowdim_jax as ld

jax.config.update("jax_enable_x64", True)  # small starts need double precision

values = jnp.array([5.0, 3.6, 2.6, 1.8])
target = ld.random_target(jax.random.key(0), (60, 60), values)
problem = ld.factorization(target)
print(problem.shape, "of rank", len(values))

# %% [markdown]
# ## Two networks of three layers
#
# The original starts with random orthogonal layers times `ε`, the compressed one with the singular vectors of the *surrogate*,
# which is the negative gradient at zero. For a known matrix that is the matrix itself.

# %%
scale = 0.03
original = ld.orthogonal(jax.random.key(1), ld.full_widths(60, 60, depth=3), scale=scale)
compressed = ld.compress(problem, depth=3, scale=scale)
for name, network in {"original": original, "compressed": compressed}.items():
    print(f"{name:<11} widths {ld.widths(network)}, {ld.parameter_count(network):>6} parameters")

# %% [markdown]
# ## Train both, with the same learning rate
#
# The edge of stability is known beforehand: `2 / (L σ₁^{2−2/L})`. Half of it is safe.

# %%
rate = 0.5 * ld.max_learning_rate(problem, depth=3)
options = dict(steps=700, record_every=2, observe=ld.spectra.singular_values)
runs = {
    name: ld.gradient_descent(problem, network, ld.GradientDescent(rate), **options)
    for name, network in {"original": original, "compressed": compressed}.items()
}
for name, run in runs.items():
    print(f"{name:<11} {run.message}, recovery error {problem.recovery_error(run.weights):.1e}")

# %% [markdown]
# ## What was predicted
#
# Every singular value of the compressed network moves alone, and its course under gradient flow has a closed form. It is drawn
# dashed; nothing was fitted to the measurements.

# %%
steps = np.asarray(runs["compressed"].steps)
flow = ld.theory.mode_trajectory(rate * jnp.asarray(steps)[:, None], values[None, :], depth=3, scale=scale)

figure, axes = plt.subplots(1, 2, sharey=True)
for panel, (name, run) in zip(axes, runs.items()):
    panel.plot(steps, run.observed[:, :4], linewidth=2.5)
    panel.plot(steps, flow, "k--", linewidth=1)
    panel.set(title=f"{name} network", xlabel="iteration")
axes[0].set_ylabel("singular value")

# %% [markdown]
# The compressed network keeps to the prediction. The original does the same later, in the same order: before it can grow, each
# component has to turn its random singular vectors towards the target's. How much later is known, too: the ratio of waiting
# times tends to `κ_3 = 1.1997` for wide networks and small `ε` (docs/theory.md 3.7).

# %%
predicted = ld.theory.fit_time(values, depth=3, scale=scale, tolerance=0.05) / rate
measured = {
    name: ld.spectra.crossing_time(run.steps, run.observed[:, :4], 0.95 * values) for name, run in runs.items()
}
print("component   predicted   compressed   original   ratio")
for i in range(4):
    row = predicted[i], measured["compressed"][i], measured["original"][i]
    print(f"{i + 1:>9}   {row[0]:9.1f}   {row[1]:10.1f}   {row[2]:8.1f}   {row[2] / row[1]:5.3f}")

# %% [markdown]
# ## The loss rests on plateaus
#
# While the next component waits, the loss is half the sum of squares of those still missing.

# %%
figure, axes = plt.subplots()
for name, run in runs.items():
    axes.plot(run.steps, run.losses, label=name, linewidth=2)
for level in ld.theory.plateau_losses(values)[:-1]:
    axes.axhline(float(level), color="k", linewidth=0.8, linestyle="--")
axes.set(yscale="log", ylim=(0.1, 40), xlabel="iteration", ylabel="loss", title="Loss and predicted plateaus")
_ = axes.legend()

# %% [markdown]
# Play with it: change `scale`, `values` or the depth here, or drag them in the [explorer](../explorer.md).
