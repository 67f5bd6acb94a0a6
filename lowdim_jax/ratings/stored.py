"""A rating model as one file: `.npz`, arrays and text alone, with the version of what they mean."""

from itertools import pairwise
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from lowdim_jax._command import replace_files
from lowdim_jax._reading import because, named, regular_file
from lowdim_jax.networks import Weights

FORMAT = "lowdim-ratings model"
VERSION = 1
FIELDS = ("mean", "user_effects", "item_effects", "scale", "users", "items", "rated_items", "rated_ends")
"""Arrays of a file, beside `format`, `version` and the layers; docs/ratings.md says what they hold."""


def write_model(path: Path, arrays: dict[str, np.ndarray], weights: Weights, /) -> None:
    """Write `FIELDS` and layers; the file takes its name once it is whole."""
    layers = {f"layer_{k}": np.asarray(layer) for k, layer in enumerate(weights, start=1)}
    head = {"format": np.array(FORMAT), "version": np.array(VERSION)}
    with replace_files(path) as (temporary,), temporary.open("wb") as file:
        np.savez_compressed(file, **head, **arrays, **layers)  # pyright: ignore[reportArgumentType]


def read_model(path: Path, /) -> tuple[dict[str, np.ndarray], Weights]:
    """What `write_model` has written.

    Raises
    ------
    ValueError
        In one sentence that names the file, if it cannot be read, is something else, or is damaged.
    """
    what = f"model {named(path)}"
    regular_file(path, what)
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zip, zlib, NumPy and memory each raise their own
        raise ValueError(
            f"{what} cannot be read: it is no model that lowdim-ratings has written ({because(error, 80)})"
        ) from error
    if str(arrays.get("format")) != FORMAT:
        raise ValueError(f"{what} cannot be read: it is no model that lowdim-ratings has written")
    if arrays["version"].shape != () or arrays["version"].item() != VERSION:
        raise ValueError(
            f"{what} cannot be read: it is of version {because(ValueError(arrays.get('version')), 20)}, "
            f"this program reads version {VERSION}"
        )
    layers = [arrays[name] for name in (f"layer_{k}" for k in range(1, len(arrays))) if name in arrays]
    wrong = _wrong(arrays, layers)
    if wrong:
        raise ValueError(f"{what} cannot be read: {wrong}")
    return {name: arrays[name] for name in FIELDS}, tuple(map(jnp.asarray, layers))


def _wrong(arrays: dict[str, np.ndarray], layers: list[np.ndarray]) -> str:
    """What is wrong with the content of a file, in words."""
    for name in FIELDS:
        if name not in arrays:
            return f"it lacks {name}"
    users, items = arrays["users"], arrays["items"]
    shapes = {
        "mean": (), "scale": (2,), "users": (len(users),) if users.ndim else None,
        "items": (len(items),) if items.ndim else None, "user_effects": users.shape,
        "item_effects": items.shape, "rated_ends": users.shape,
        "rated_items": arrays["rated_items"].shape[:1],
    }  # fmt: skip
    for name, shape in shapes.items():
        kind = "U" if name in ("users", "items") else "iu" if name.startswith("rated") else "f"
        array = arrays[name]
        if array.shape != shape or array.dtype.kind not in kind:
            return f"{name} has shape {array.shape} and type {array.dtype}, expected {shape} and {kind}"
        if kind == "f" and not np.isfinite(array).all():
            return f"{name} is not finite"
    ends, rated = arrays["rated_ends"].astype(np.int64), arrays["rated_items"]
    if np.any(np.diff(ends, prepend=0) < 0) or (len(ends) and ends[-1] != len(rated)):
        return "rated_ends does not lead through rated_items"
    if len(rated) and not 0 <= int(rated.min()) <= int(rated.max()) < len(items):
        return "rated_items has an item that there is not"
    sides = [layer.shape for layer in layers]
    if any(len(side) != 2 for side in sides):
        return "a layer is no matrix"
    if layers and (sides[0][1], sides[-1][0]) != (len(items), len(users)):
        return "the layers do not lead from items to users"
    if any(one[0] != two[1] for one, two in pairwise(sides)):
        return "the layers do not fit each other"
    if not all(layer.dtype.kind == "f" and np.isfinite(layer).all() for layer in layers):
        return "a layer is not finite"
    return ""
