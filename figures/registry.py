"""The figures there are, and how one is made: compute, save the arrays, draw from the saved arrays.

A figure is a module of this package, its name written with underscores. Its docstring says what it
shows (the first line) and where that comes from; `SETTINGS` holds its settings by size;
`compute(settings)` returns NumPy arrays by name, and `plot(arrays, settings)` a Matplotlib figure. One that
is in `WITH_DATA` has `compute(settings, data)`, with the user's folder of data, or None.
Listing reads the modules' text only, so that it does not wait for JAX.
"""

import ast
import importlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np

NAMES = (
    "predicted-vs-measured",
    "factorization-trajectory",
    "sensing-trajectory",
    "completion-trajectory",
    "alpha-ablation",
    "depth-two-against-three",
    "incremental-learning",
    "incremental-learning-sensing",
    "incremental-learning-completion",
    "alignment",
    "rank-overestimation",
    "learning-times",
    "law-of-parsimony",
    "lossless-equivalence",
    "widths",
    "escape-ratio",
    "weight-updates",
    "nonlinear-accuracy",
    "rank-accuracy",
    "movielens",
)
WITH_DATA = ("weight-updates", "nonlinear-accuracy", "rank-accuracy", "movielens")
"""Figures of the user's own images or ratings, if there are any; their `compute` takes a folder, too."""
SIZES = ("small", "paper")
SETTINGS_KEY = "settings"


@dataclass(frozen=True)
class Description:
    """What is known of a figure without importing it."""

    name: str
    summary: str
    settings: Mapping[str, Mapping[str, Any]]


def select(names: list[str], *, everything: bool = False) -> tuple[str, ...]:
    """Names of figures, each once; raises `ValueError` for one that does not exist."""
    if everything == bool(names):
        raise ValueError("give the names of figures, or --all")
    for name in names:
        if name not in NAMES:
            raise ValueError(f"there is no figure {name!r}; there are {', '.join(NAMES)}")
    return NAMES if everything else tuple(dict.fromkeys(names))


def check_data(names: tuple[str, ...], data: Path | None, *, redraw: bool) -> None:
    """Raise `ValueError` unless a folder of data, if given, exists and one of the figures reads it."""
    if data is None:
        return
    if redraw:
        raise ValueError("--data and --redraw exclude each other: saved arrays are drawn again as they are")
    if not set(names) & set(WITH_DATA):
        raise ValueError(f"--data is for the figures {', '.join(WITH_DATA)}")
    if not data.is_dir():
        raise ValueError(f"--data {str(data)!r} is not a folder")


def describe(name: str) -> Description:
    """A figure's summary and settings, read from the text of its module."""
    tree = ast.parse((Path(__file__).parent / f"{_module_name(name)}.py").read_text("utf-8"))
    summary = (ast.get_docstring(tree) or "").partition("\n")[0]
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SETTINGS":
            return Description(name, summary, ast.literal_eval(node.value))
    raise LookupError(f"figures/{_module_name(name)}.py defines no SETTINGS")


def load(name: str) -> ModuleType:
    """The module of a figure; imports JAX."""
    return importlib.import_module(f"figures.{_module_name(name)}")


def make(name: str, *, size: str, out: Path, data: Path | None = None) -> list[Path]:
    """Compute a figure, save its arrays, and draw it; returns the files written."""
    import jax

    settings = describe(name).settings[size]
    own = (data,) if name in WITH_DATA else ()
    with jax.enable_x64(True):
        arrays = load(name).compute(settings, *own)
    saved = out / f"{name}.npz"
    contents = {**arrays, SETTINGS_KEY: np.array(_as_json(settings))}
    _write(saved, lambda file: np.savez_compressed(file, **contents))
    return [saved, *draw(name, read(name, size=size, out=out), size=size, out=out)]


def read(name: str, *, size: str, out: Path) -> dict[str, np.ndarray]:
    """Saved arrays of a figure; `ValueError` if there are none, or they have other settings."""
    path = out / f"{name}.npz"
    again = "make the figure without --redraw"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as contents:
            arrays = dict(contents)
        saved = json.loads(str(arrays.pop(SETTINGS_KEY)))
    except FileNotFoundError:
        raise ValueError(f"there are no saved arrays {path}: {again} first") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} does not hold the arrays of a figure: {again}") from error
    expected = json.loads(_as_json(describe(name).settings[size]))
    if saved != expected:
        raise ValueError(
            f"{path} was made with other settings than size {size!r} has now "
            f"({_difference(saved, expected)}): {again}, or give another --size"
        )
    return arrays


def draw(name: str, arrays: dict[str, np.ndarray], *, size: str, out: Path) -> list[Path]:
    """Draw a figure from its arrays as PNG and SVG; returns the files written."""
    import matplotlib

    from figures import style

    png, svg = out / f"{name}.png", out / f"{name}.svg"
    with matplotlib.rc_context(style.RC):
        figure = load(name).plot(arrays, describe(name).settings[size])
        _write(png, lambda file: figure.savefig(file, format="png", dpi=style.DPI))
        no_date = {"Date": None}  # the same arrays give the same bytes
        _write(svg, lambda file: figure.savefig(file, format="svg", metadata=no_date))
    return [png, svg]


def require_writable(folder: Path) -> None:
    """Find out before a long run, not after it, that its results cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"--out {str(folder)!r} cannot be written to: {error.strerror}") from error


def _module_name(name: str) -> str:
    return name.replace("-", "_")


def _as_json(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _difference(saved: Any, expected: dict[str, Any]) -> str:
    saved = saved if isinstance(saved, dict) else {}
    keys = [key for key in {**expected, **saved} if saved.get(key) != expected.get(key)]
    return "; ".join(
        f"{key} {saved.get(key, 'absent')}, now {expected.get(key, 'absent')}" for key in keys
    )


def _write(path: Path, save: Callable[[IO[bytes]], object]) -> None:
    """Write under a temporary name, then rename: no reader ever sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            save(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
