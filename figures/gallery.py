"""A page of the figures that a folder holds, with what each shows and the settings it was made with."""

import json
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from figures import registry
from lowdim_jax._command import replace_files

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Figures</title><style>
body {{ margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem; font: 1rem/1.5 system-ui, sans-serif; }}
figure {{ margin: 2.5rem 0; break-inside: avoid; }} img {{ max-width: 100%; height: auto; }}
h2 {{ margin: 0 0 .3rem; font-size: 1.15rem; }} figcaption p {{ margin: .3rem 0; max-width: 48rem; }}
.settings, details {{ color: #566173; font-size: .875rem; }} summary {{ cursor: pointer; }}
</style></head><body><h1>Figures</h1>
{figures}
</body></html>
"""
_FIGURE = """<figure id="{name}"><figcaption><h2>{name}</h2><p>{summary}</p></figcaption>
{pictures}
<figcaption><p class="settings">{settings}</p>
<details><summary>Source and how it is made</summary>{text}</details>
</figcaption></figure>"""


def write(out: Path) -> Path:
    """Write `index.html` beside the pictures of a folder; returns its path."""
    made = [name for name in registry.names() if (out / f"{name}.png").exists()]
    page = _PAGE.format(figures="\n".join([_figure(name, out) for name in made]))
    path = out / "index.html"
    with replace_files(path) as (temporary,):
        temporary.write_text(page, encoding="utf-8")
    return path


def _figure(name: str, out: Path) -> str:
    figure = registry.describe(name)
    stems = sorted(path.stem for path in out.glob(f"{name}*.png") if _owner(path.stem) == name)
    pictures = [f"{stem}.png" for stem in stems] + [path.name for path in out.glob(f"{name}.gif")]
    return _FIGURE.format(
        name=name,
        summary=escape(figure.summary),
        pictures="\n".join(
            [f'<img src="{picture}" alt="{escape(figure.summary, quote=True)}">' for picture in pictures]
        ),
        settings=escape(settings_line(saved_settings(out / f"{name}.npz"))),
        text="".join([f"<p>{escape(part)}</p>" for part in figure.text.split("\n\n")]),
    )


def _owner(stem: str) -> str:
    """The figure that a picture belongs to: its name, or its name and more."""
    return max([name for name in registry.names() if f"{stem}-".startswith(f"{name}-")], key=len, default="")


def saved_settings(path: Path) -> dict[str, Any]:
    """The settings that a file of arrays was computed with; none if there is no such file."""
    try:
        with np.load(path, allow_pickle=False) as contents:
            return json.loads(str(contents[registry.SETTINGS_KEY]))
    except (OSError, KeyError, ValueError):
        return {}


def settings_line(settings: dict[str, Any]) -> str:
    """Settings as a line of text, those that say what and how first."""
    symbols = {"depth": "L", "scale": "ε", "learning_rate": "η", "alpha": "α"}
    symbols |= {"measurements": "m", "observed": "p"}
    first = [key for key in ("d", "r", "ranks", *symbols) if key in settings]
    order = dict.fromkeys([*first, *sorted(settings)])
    shown = [f"{symbols.get(key, key)} {_short(settings[key])}" for key in order if settings[key] != ""]
    return ", ".join(shown)


def _short(value: object) -> str:
    if isinstance(value, dict):
        return " / ".join([f"{key}: {_short(item)}" for key, item in value.items()])
    if isinstance(value, list):
        nested = any(isinstance(item, list) for item in value)
        return (" / " if nested else " ").join([_short(item) for item in value])
    return str(value)
