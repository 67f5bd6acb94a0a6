"""Parts of a model by their path: `"head.network"`, `"blocks.0.mlp"`, or the same as a tuple."""

from typing import Any, TypeVar

from flax import nnx

Path = str | tuple[str | int, ...]
Model = TypeVar("Model", bound=nnx.Module)


def layer_at(model: nnx.Module, path: Path, /) -> Any:
    """The part of a model at a path.

    Raises
    ------
    ValueError
        If there is none.
    """
    part: Any = model
    for name in _names(path):
        try:
            part = part[name] if isinstance(name, int) else getattr(part, name)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(
                f"path={path!r}: the {type(part).__name__} has no part {name!r}"
            ) from error
    return part


def replace_layer(model: Model, path: Path, layer: nnx.Module, /) -> Model:
    """Put another layer at a path, in place; returns the model.

    Raises
    ------
    ValueError
        If nothing is there now.
    """
    layer_at(model, path)
    *before, last = _names(path)
    parent = layer_at(model, tuple(before))
    if isinstance(last, int):
        parent[last] = layer
    else:
        setattr(parent, last, layer)
    return model


def _names(path: Path) -> tuple[str | int, ...]:
    if not path:
        return ()
    names = path.split(".") if isinstance(path, str) else path
    return tuple(int(name) if str(name).isdigit() else name for name in names)
