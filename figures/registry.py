"""The figures there are, and how one is made: compute, save the arrays, draw from the saved arrays.

A figure is a module of this package, its name written with underscores, and a table of settings.toml. The
module's docstring says what it shows (the first line) and where that comes from; `compute` and `plot` are as
in `figures.protocol`. Listing imports no figure, so that it does not wait for JAX.
"""

import ast
import importlib
import json
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lowdim_jax._command import replace_files

if TYPE_CHECKING:
    from figures.protocol import Arrays, FigureModule, Settings

SIZES = ("small", "paper")
SIZES_MEAN = (
    "'small' (default): matrices of 40×40 or so, seconds on two cores; 'paper': the paper's settings, "
    "100×100 to 200×200, and as many seeds as it takes, minutes"
)
"""What a size is, in words; `lowdim-figures list` shows the settings themselves."""
SETTINGS_KEY = "settings"
"""Under this name a file of arrays holds the settings they were computed with."""
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Description:
    """What is known of a figure without importing it.

    Attributes
    ----------
    name
        As it is listed.
    summary
        What it shows, one line.
    settings
        Its settings by size.
    text
        The rest of what its module says of it.
    seconds
        How long making it took on two CPU cores, by size; for an estimate of what is left.
    """

    name: str
    summary: str
    settings: Mapping[str, Mapping[str, Any]]
    text: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def reads_data(self) -> bool:
        """Whether it reads a folder of the user's own images or ratings, if there is one."""
        return "data" in self.settings["small"]


@cache
def _tables() -> dict[str, dict[str, Any]]:
    return tomllib.loads((FOLDER / "settings.toml").read_text("utf-8"))


def names() -> tuple[str, ...]:
    """Names of all figures."""
    return tuple(_tables())


def describe(name: str) -> Description:
    """A figure's summary and settings."""
    table = _tables()[name]
    small = {key: value for key, value in table.items() if key not in ("paper", "seconds")}
    tree = ast.parse((FOLDER / f"{_module_name(name)}.py").read_text("utf-8"))
    summary, _, text = (ast.get_docstring(tree) or "").partition("\n")
    settings = {"small": small, "paper": small | table["paper"]}
    return Description(name, summary, settings, text.strip(), table.get("seconds", {}))


def select(wanted: list[str], *, everything: bool = False) -> tuple[str, ...]:
    """Names of figures, each once; raises `ValueError` for one that does not exist."""
    if everything == bool(wanted):
        raise ValueError("give the names of figures, or --all")
    for name in wanted:
        if name not in names():
            raise ValueError(f"there is no figure {name!r}; there are {', '.join(names())}")
    return names() if everything else tuple(dict.fromkeys(wanted))


def check_data(wanted: tuple[str, ...], data: Path | None, *, redraw: bool) -> None:
    """Raise `ValueError` unless a folder of data, if given, exists and one of the figures reads it."""
    if data is None:
        return
    if redraw:
        raise ValueError("--data and --redraw exclude each other: saved arrays are drawn again as they are")
    reading = [name for name in names() if describe(name).reads_data]
    if not set(wanted) & set(reading):
        raise ValueError(f"--data is for the figures {', '.join(reading)}")
    if not data.is_dir():
        raise ValueError(f"--data {str(data)!r} is not a folder")


def load(name: str) -> "FigureModule":
    """The module of a figure; imports JAX."""
    return cast("FigureModule", importlib.import_module(f"figures.{_module_name(name)}"))


def make(name: str, *, size: str, out: Path, data: Path | None = None) -> list[Path]:
    """Compute a figure, save its arrays, and draw it; returns the files written."""
    import jax

    figure = describe(name)
    settings = dict(figure.settings[size])
    if figure.reads_data and data is not None:
        settings["data"] = str(data)
    with jax.enable_x64(True):
        arrays = load(name).compute(settings)
    saved = out / f"{name}.npz"
    contents: dict[str, Any] = {**arrays, SETTINGS_KEY: np.array(_as_json(settings))}
    with replace_files(saved) as (temporary,):
        np.savez_compressed(temporary, **contents)
    return [saved, *draw(name, read(name, size=size, out=out), size=size, out=out)]


def read(name: str, *, size: str, out: Path) -> "Arrays":
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
    difference = _difference(saved, json.loads(_as_json(describe(name).settings[size])))
    if difference:
        raise ValueError(
            f"{path} was made with other settings than size {size!r} has now "
            f"({difference}): {again}, or give another --size"
        )
    return arrays


def draw(name: str, arrays: "Arrays", *, size: str, out: Path) -> list[Path]:
    """Draw a figure from its arrays as PNG and SVG, and as it is also drawn; returns the files written."""
    import matplotlib

    from figures import gallery, style

    settings = describe(name).settings[size]
    module: Any = load(name)  # what it may have besides, a protocol cannot say
    with matplotlib.rc_context(style.RC):
        drawn = {name: module.plot(arrays, settings)}
        if hasattr(module, "variants"):
            more = module.variants(arrays, settings)
            drawn |= {f"{name}-{variant}": figure for variant, figure in more.items()}
        written = []
        for stem, figure in drawn.items():
            png, svg = out / f"{stem}.png", out / f"{stem}.svg"
            with replace_files(png, svg) as (new_png, new_svg):
                figure.savefig(new_png, format="png", dpi=style.DPI)
                no_date = {"Date": None}  # the same arrays give the same bytes
                figure.savefig(new_svg, format="svg", metadata=no_date)
            written += [png, svg]
        if hasattr(module, "animate"):
            written.append(_animate(out / f"{name}.gif", *module.animate(arrays, settings)))
    return [*written, gallery.write(out)]


def _animate(path: Path, figure: Any, update: Any, frames: int) -> Path:
    from matplotlib.animation import FuncAnimation, PillowWriter

    animation = FuncAnimation(figure, update, frames=frames)
    with replace_files(path) as (temporary,):
        animation.save(str(temporary), writer=PillowWriter(fps=10), dpi=80)
    return path


def _module_name(name: str) -> str:
    return name.replace("-", "_")


def _as_json(settings: "Settings") -> str:
    return json.dumps(settings, sort_keys=True)


def _difference(saved: Any, expected: dict[str, Any]) -> str:
    """Settings that differ, in words; the folder of data may, as the arrays say whose they are."""
    saved = saved if isinstance(saved, dict) else {}
    keys = [key for key in {**expected, **saved} if saved.get(key) != expected.get(key) and key != "data"]
    return "; ".join(f"{key} {saved.get(key, 'absent')}, now {expected.get(key, 'absent')}" for key in keys)
