"""Parts of a model by their path: `"head.network"`, `"blocks.0.mlp"`, or the same as a tuple."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from flax import nnx

Path = str | tuple[str | int, ...]
Pattern = str | Callable[[str, Any], bool]
Model = TypeVar("Model", bound=nnx.Module)


def layer_at(model: nnx.Module, path: Path, /) -> Any:
    """The part of a model at a path.

    Raises
    ------
    ValueError
        If there is none.

    Examples
    --------
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> model = nnx.Sequential(nnx.Linear(6, 5, rngs=nnx.Rngs(0)), nnx.Linear(5, 2, rngs=nnx.Rngs(1)))
    >>> nn.layer_at(model, "layers.1").out_features
    2
    """
    part: Any = model
    for name in names_of(path):
        try:
            part = _child(part, name)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(
                f"path={path!r}: the {type(part).__name__} has no part {name!r}"
            ) from error
    return part


def part_at(model: nnx.Module, names: tuple, /) -> Any:
    """The part of a model at a path as Flax gives it, whose steps are exact: `"0"` is no index."""
    part: Any = model
    for name in names:
        part = part[name] if isinstance(part, dict) else _child(part, name)
    return part


def _child(part: Any, name: str | int) -> Any:
    if isinstance(part, dict):
        return part[name] if name in part else part[str(name)]
    return part[name] if isinstance(part, Sequence) else getattr(part, str(name))  # type: ignore[call-overload]


def replace_layer(model: Model, path: Path, layer: nnx.Module, /) -> Model:
    """Put another layer at a path, in place; returns the model.

    Raises
    ------
    ValueError
        If nothing is there now, it is in a tuple, or the path is empty: a model is not a part of itself.

    Examples
    --------
    >>> from flax import nnx
    >>> from lowdim_jax import nn
    >>> model = nnx.Sequential(nnx.Linear(6, 5, rngs=nnx.Rngs(0)))
    >>> _ = nn.replace_layer(model, "layers.0", nn.CompressedLinear(6, 5, rank=2, rngs=nnx.Rngs(1)))
    >>> type(model.layers[0]).__name__
    'CompressedLinear'
    """
    layer_at(model, path)
    if not names_of(path):
        raise ValueError(f"path={path!r} is the model itself, expected the path of one of its parts")
    *before, last = names_of(path)
    parent = layer_at(model, tuple(before))
    if isinstance(parent, tuple):
        raise ValueError(f"path={path!r} leads into a tuple, expected a place where another layer can be put")
    if isinstance(parent, dict):
        parent[last if last in parent else str(last)] = layer
    elif isinstance(parent, Sequence):
        parent[last] = layer  # type: ignore[index]
    else:
        setattr(parent, str(last), layer)
    return model


def names_of(path: Path, /) -> tuple[str | int, ...]:
    """The steps of a path: names, and the indices of lists as integers.

    Raises
    ------
    ValueError
        If it is neither a text nor a sequence of names.
    """
    if not isinstance(path, str | tuple | list):
        raise ValueError(f"path={path!r} is a {type(path).__name__}, expected a text or a tuple of names")
    names = (path.split(".") if path else ()) if isinstance(path, str) else path
    return tuple(int(name) if str(name).isdigit() else name for name in names)


def matching(
    model: nnx.Module, pattern: Pattern, /
) -> Iterator[tuple[str, tuple, nnx.Module]]:
    """Parts of a model whose path fits, each once: path, its steps, and the part.

    A part used in several places fits with any of its paths, and comes with the first.

    Parameters
    ----------
    pattern
        A regular expression that must fit the whole path (`r".*\\.(query|value)"`), or a function of
        path and layer (`lambda path, layer: isinstance(layer, nnx.Conv)`).

    Raises
    ------
    ValueError
        If it is neither.
    """
    if isinstance(pattern, str):
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"pattern={pattern!r} is no regular expression: {error}") from error
        fits: Callable[[str, Any], Any] = lambda path, _: expression.fullmatch(path)  # noqa: E731
    elif callable(pattern):
        fits = pattern
    else:
        raise ValueError(
            f"pattern={pattern!r}, expected a regular expression or a function of path and layer"
        )
    places = _places(model)
    for names, layer in nnx.iter_modules(model):
        path = ".".join(map(str, names))
        if any(fits(other, layer) for other in dict.fromkeys([path, *places.get(id(layer), ())])):
            yield path, names, layer


def _places(model: nnx.Module) -> dict[int, list[str]]:
    """All paths of every module, by its `id`."""
    found: dict[int, list[str]] = {}

    def visit(part, names, above):
        if id(part) in above:
            return
        if isinstance(part, nnx.Module):
            found.setdefault(id(part), []).append(".".join(names))
        for name, item in _items(part):
            if isinstance(item, nnx.Pytree | tuple | list | dict):
                visit(item, (*names, str(name)), above | {id(part)})

    visit(model, (), frozenset())
    return found


def _items(part: Any) -> Any:
    if isinstance(part, dict):
        return part.items()
    if isinstance(part, Sequence):
        return enumerate(part)
    return [(name, item) for name, item in vars(part).items() if not name.startswith("_pytree__")]


def replace_everywhere(model: nnx.Module, new: Mapping[int, Any], /) -> None:
    """Put `new[id(part)]` in the place of each part named so, wherever the model refers to it."""
    seen: set[int] = set()

    def visit(part):
        if isinstance(part, tuple | list):
            parts = [visit(item) for item in part]
            changed = any(a is not b for a, b in zip(part, parts, strict=True))
            return type(part)(parts) if changed else part
        if isinstance(part, dict):
            parts = {key: visit(item) for key, item in part.items()}
            return parts if any(parts[key] is not part[key] for key in part) else part
        if id(part) in new:
            return new[id(part)]
        if isinstance(part, nnx.Pytree) and id(part) not in seen:
            seen.add(id(part))
            for name, item in list(vars(part).items()):
                if not name.startswith("_pytree__") and (put := visit(item)) is not item:
                    setattr(part, name, nnx.data(put) if isinstance(item, tuple | list | dict) else put)
        return part

    visit(model)
