# %% [markdown]
# # Your own loss, and your own problem
#
# Solvers train any function of the weights. What a *problem* adds is a surrogate: the matrix `−∇ℓ(0)` that tells a compressed
# network where to start and how fast to go.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import lowdim_jax as ld

# %% [markdown]
# ## A loss of a matrix
#
# Say rows count differently, and large misfits are not to dominate: a weighted pseudo-Huber loss.

# %%
target = ld.random_target(jax.random.key(0), (40, 30), jnp.array([6.0, 4.0, 2.5])).dense()
counts = jnp.linspace(0.5, 1.5, 40)[:, None]


def matrix_loss(matrix):
    return jnp.sum(counts * (jnp.sqrt(1 + (matrix - target) ** 2) - 1))


def loss(weights):
    return matrix_loss(ld.end_to_end(weights))


# %% [markdown]
# Its surrogate is one gradient, and the surrogate's singular values show how many directions are worth a hidden unit.

# %%
surrogate = ld.compression.loss_surrogate(matrix_loss, (40, 30))
print("leading singular values", ld.linalg.leading_svd(surrogate, 5).singular_values.round(3))
network = ld.spectral(surrogate, rank=3, depth=3, scale=0.1)
run = ld.gradient_descent(loss, network, ld.GradientDescent(0.05), steps=600, record_every=5)
print(run.message, "| loss", float(run.losses[0].round(3)), "->", float(run.losses[-1].round(6)))

# %% [markdown]
# ## The same as a problem
#
# An object with `shape`, `loss(weights)` and `surrogate(rank)` is a problem, and then `compress`, `max_learning_rate` and `fit`
# know it. Registered as a pytree its arrays are traced: other numbers compile nothing again.

# %%
from dataclasses import dataclass


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Robust:
    target: jax.Array
    counts: jax.Array

    @property
    def shape(self):
        return self.target.shape

    def of_matrix(self, matrix):
        return jnp.sum(self.counts * (jnp.sqrt(1 + (matrix - self.target) ** 2) - 1))

    def loss(self, weights):
        return self.of_matrix(ld.end_to_end(weights))

    def surrogate(self, rank=None):
        return ld.linalg.leading_svd(-jax.grad(self.of_matrix)(jnp.zeros(self.shape)), rank)


problem = Robust(target, counts)
starts = {
    "spectral": ld.compress(problem, depth=3, rank=3, scale=0.1),
    "random": ld.orthogonal(jax.random.key(1), ld.compressed_widths(40, 30, depth=3, rank=3), scale=0.1),
}
rate = 0.5 * ld.max_learning_rate(problem, depth=3)
figure, axes = plt.subplots()
for name, weights in starts.items():
    run = ld.gradient_descent(problem, weights, ld.GradientDescent(rate), steps=400)
    axes.plot(run.steps, run.losses, label=f"{name} start", linewidth=2)
axes.set(yscale="log", xlabel="iteration", ylabel="loss", title="A start from the surrogate saves the search")
_ = axes.legend()

# %% [markdown]
# Both networks have the same size, rate and scale. The only difference is one gradient, taken before training.
