# %% [markdown]
# # Complete a matrix
#
# From some of the entries of a matrix to all of them: `fit` takes width, scale, learning rate and the end of training from the
# data. The matrix here is a photograph with a third of its pixels.

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image

import lowdim_jax as ld

photograph = load_sample_image("china.jpg").mean(axis=2)[::4, ::4] / 255
mean = photograph.mean()
mask = np.random.default_rng(0).random(photograph.shape) < 0.35
print(photograph.shape, f"{mask.mean():.0%} of the pixels are known")

# %% [markdown]
# A photograph is only nearly of low rank: what a small network cannot show is noise to it, which a wide one would fit. `fit` notices,
# holds out a tenth of the known pixels, and keeps the rank that predicts them best. The mean is taken off first, as one would with
# ratings. For a user's matrix the truth is not known; here it is, and measures the error on the pixels that were hidden.

# %%
def complete(mask):
    """The photograph from the pixels of a mask, and how the fit went."""
    result = ld.fit(ld.completion(jnp.asarray(photograph - mean), jnp.asarray(mask)))
    return mean + np.asarray(ld.end_to_end(result.weights)), result


def error_of(picture, mask):
    return np.linalg.norm((picture - photograph)[~mask]) / np.linalg.norm((photograph - mean)[~mask])


filled, result = complete(mask)
print(result.message)
print(f"error on hidden pixels {error_of(filled, mask):.3f}, where the mean has 1")

# %%
known = np.where(mask, photograph, np.nan)
figure, axes = plt.subplots(1, 3, figsize=(10, 2.6))
for panel, (title, picture) in zip(axes, {"35% of the pixels": known, "completed": filled, "truth": photograph}.items()):
    panel.imshow(picture, cmap="gray", vmin=0, vmax=1)
    panel.set_title(title)
    panel.axis("off")

# %% [markdown]
# ## How much is needed?

# %%
shares = [0.2, 0.35, 0.6]
masks = [np.random.default_rng(0).random(photograph.shape) < share for share in shares]
errors = [error_of(complete(mask)[0], mask) for mask in masks]
figure, axes = plt.subplots(figsize=(5, 3))
axes.plot(shares, errors, "o-")
axes.set(xlabel="fraction of the pixels known", ylabel="error on hidden pixels", ylim=(0, 0.6))
_ = axes.set_title("More pixels, smaller error")

# %% [markdown]
# For millions of entries of a large matrix give triplets to `ld.observed_completion`, and for files of ratings use `lowdim-ratings`:
# [predict ratings](../ratings.md).
