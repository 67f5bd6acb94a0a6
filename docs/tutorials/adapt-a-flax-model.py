# %% [markdown]
# # Adapt a Flax model
#
# A trained network meets new data. Instead of training all weights again, `nn.adapt` gives layers a low-rank *delta* and trains
# that alone. Its directions are taken from one gradient of the new loss, the surrogate, where others start at random.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from flax import nnx

from lowdim_jax import nn
from lowdim_jax.nn import reference

train, test = reference.digits().split(held_out=0.25)
model = reference.MLP((8, 8, 1), 10, width=128, rngs=nnx.Rngs(0))
for _ in reference.train(model, optax.sgd(0.1, momentum=0.9), train, steps=200, record_every=200):
    pass
print(f"accuracy on digits: {reference.accuracy(model, test):.3f}")


def mirrored(data):
    return type(data)(data.images[:, :, ::-1], data.labels)


print(f"on mirrored digits: {reference.accuracy(model, mirrored(test)):.3f}")

# %% [markdown]
# ## Two deltas of rank 4
#
# One from the surrogate, one from random directions (which is what LoRA does). The model's own weights stay as they are.

# %%
new = mirrored(train)
batch = (jnp.asarray(new.images[:512]), jnp.asarray(new.labels[:512]))
optimizer = optax.adam(3e-3)
courses = {}
for start in ("surrogate", "random"):
    adapted = nnx.clone(model)
    given = dict(loss=reference.cross_entropy, batch=batch) if start == "surrogate" else dict(rngs=nnx.Rngs(3))
    report = nn.adapt(adapted, r".*", rank=4, start=start, **given)
    state = nnx.Optimizer(adapted, optimizer, wrt=nn.DeltaParam)

    @nnx.jit
    def step(network, state, images, labels):
        wrt = nnx.DiffState(0, nn.DeltaParam)
        gradients = nnx.grad(reference.cross_entropy, argnums=wrt)(network, images, labels)
        state.update(network, gradients)

    course = [reference.accuracy(adapted, mirrored(test))]
    order = jax.random.permutation(jax.random.key(1), len(new.labels))
    for number in range(60):
        part = jnp.take(order, jnp.arange(128) + 128 * number, mode="wrap")
        step(adapted, state, jnp.asarray(new.images)[part], jnp.asarray(new.labels)[part])
        if number % 3 == 2:
            course.append(reference.accuracy(adapted, mirrored(test)))
    courses[start] = course
print(report)

# %%
figure, axes = plt.subplots()
for start, course in courses.items():
    axes.plot(range(0, 61, 3), course, label=f"start: {start}", linewidth=2)
axes.set(xlabel="iteration", ylabel="accuracy on mirrored digits", title="Deltas of rank 4")
_ = axes.legend()

# %% [markdown]
# ## Merge
#
# After training the deltas go into the weights, and the model is what it was: plain layers, no slower than before.

# %%
print("layers merged:", nn.merge(adapted))
print(f"accuracy as a plain model: {reference.accuracy(adapted, mirrored(test)):.3f}")

# %% [markdown]
# [Compress a layer](../compress-a-layer.md) is about layers that are narrow from the start, and has the measurements.
