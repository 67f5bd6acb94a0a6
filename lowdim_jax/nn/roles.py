"""Discrepant learning rates over a whole model: one optimizer a role (docs/theory.md 1.4)."""

import jax
import optax
from flax import nnx

from lowdim_jax.networks import roles
from lowdim_jax.nn.deltas import Delta
from lowdim_jax.nn.layers import DeepLinear


def partition(
    model: nnx.Module,
    /,
    *,
    outer: optax.GradientTransformation,
    middle: optax.GradientTransformation,
    other: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """One optax optimizer for all parameters of a model, each treated by its role.

    For example `partition(model, outer=optax.adam(5e-3), middle=optax.adam(1e-3),
    other=optax.adam(1e-3))`. It works with `nnx.Optimizer(model, …, wrt=nnx.Param)` and with plain
    optax on `nnx.state(model, nnx.Param)`, and for every model of the same structure. No parameter
    is frozen unless one of the three freezes it.

    Parameters
    ----------
    model
        Any model; its `DeepLinear` and `CompressedLinear` layers are found wherever they are.
    outer
        For the first and the last factor of those layers.
    middle
        For their factors between.
    other
        For every other parameter, the biases of those layers included.

    Raises
    ------
    ValueError
        If, later, it is applied to parameters that the model does not have.

    Examples
    --------
    >>> from flax import nnx
    >>> import optax
    >>> from lowdim_jax import nn
    >>> model = nnx.Sequential(nn.CompressedLinear(6, 5, rank=2, rngs=nnx.Rngs(0)))
    >>> optimizer = nn.partition(model, outer=optax.sgd(0.5), middle=optax.sgd(0.1), other=optax.sgd(0.1))
    >>> _ = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
    """
    role_of = parameter_roles(model)

    def label(path, _):
        names = tuple(_name(entry) for entry in path)
        if names not in role_of:
            raise ValueError(f"the model that partition was given has no parameter {names}")
        return role_of[names]

    def labels(parameters):
        return jax.tree_util.tree_map_with_path(label, parameters, is_leaf=_is_variable)

    return optax.partition({"outer": outer, "middle": middle, "other": other}, labels)


def parameter_roles(model: nnx.Module, /) -> dict[tuple, str]:
    """Role of every parameter of a model by its path: `"outer"`, `"middle"` or `"other"`.

    Examples
    --------
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> model = nnx.Sequential(nn.CompressedLinear(6, 5, rank=2, depth=3, rngs=nnx.Rngs(0)))
    >>> sorted(nn.parameter_roles(model).values())
    ['middle', 'other', 'outer', 'outer']
    """
    role_of = {path: "other" for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    for path, layer in nnx.iter_modules(model):
        if isinstance(layer, DeepLinear):
            names = [(*path, "factors", index) for index in range(len(layer.factors))]
            role_of |= dict(zip(names, roles(tuple(layer.factors)), strict=True))
        elif isinstance(layer, Delta):
            name = "embedding" if isinstance(layer.inward, nnx.Embed) else "kernel"
            middle = [(*path, "middle", index) for index in range(len(layer.middle))]
            names = [(*path, "inward", name), *middle, (*path, "outward")]
            found = dict(zip(names, roles(tuple(names)), strict=True))
            role_of |= {place: role for place, role in found.items() if place in role_of}
    return role_of


def _is_variable(leaf) -> bool:
    return isinstance(leaf, nnx.Variable)


def _name(entry):
    """The key, index or attribute that one step of a pytree path stands for."""
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    raise ValueError(f"cannot tell which parameter {entry!r} is")
