"""Tables and reference pages, written from the code: `python docs/site/generate.py`.

They stand in the repository, where they are read without a site. A test fails when one is out of date.
"""

import importlib
import inspect
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DOCS = ROOT / "docs"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from test_examples import WORKSHOPS, public, rooms  # noqa: E402

PAGES = {
    "problems": ("Problems", "what a network is trained on, and targets", ["lowdim_jax.problems"]),
    "networks": (
        "Networks, starts, matrices",
        "tuples of matrices, their starts, low-rank matrices",
        ["lowdim_jax.networks", "lowdim_jax.initialization", "lowdim_jax.compression", "lowdim_jax.linalg"],
    ),
    "training": (
        "Training",
        "descent, flow, sweeps, `fit`, optimizers, baselines",
        [
            "lowdim_jax.descent",
            "lowdim_jax.flow",
            "lowdim_jax.sweeps",
            "lowdim_jax.fitting",
            "lowdim_jax.optimizers",
            "lowdim_jax.trajectory",
            "lowdim_jax.baselines",
        ],
    ),
    "reduction": (
        "Reduction",
        "the law of parsimony: wide networks in small spaces",
        ["lowdim_jax.reduction", "lowdim_jax.window"],
    ),
    "theory": ("Theory", "closed forms", ["lowdim_jax.theory"]),
    "measuring": ("Measuring", "spectra, alignment, fit times", ["lowdim_jax.spectra"]),
    "nn": ("nn", "layers for Flax, adapters, reference models", ["lowdim_jax.nn"]),
    "ratings": ("ratings", "files of ratings", ["lowdim_jax.ratings"]),
    "distributed": ("distributed", "many devices and processes", ["lowdim_jax.distributed"]),
    "theory_checks": ("theory_checks", "checks of your own", ["theory_checks"]),
}
CHECKS = {
    "theory_checks.registry": ("check", "Evidence", "Curve", "Check", "NotApplicable"),
    "theory_checks.setting": ("Setting",),
    "theory_checks.runs": ("per_seed",),
}
"""What `theory_checks` is for users, from modules that hold more."""
INDEX = """# Reference

Every public name, with an example that the tests run. Functions take arrays by position and settings by name;
what is not exported at the top is used from its module.

| | |
|---|---|
"""
GALLERY = """# Gallery

Every figure, with its settings at both sizes: *small*, matrices of 40 × 40 or so, made in seconds on two
cores, and *paper*, the paper's settings, in minutes. The first picture is of size small; where size paper was
made, too, its picture follows. `python -m figures make --all` makes them again, with a page like this one,
`figures/out/index.html`. Seconds in pictures are of the machine that made them, which other work kept busy;
iterations are exact.
"""
TOP = """# The top level

What `import lowdim_jax as ld` brings; the rest is used from its module.

| name | what it is |
|---|---|
"""


def pages() -> dict[Path, str]:
    """The generated pages, whole."""
    index = (
        INDEX + "| [the top level](lowdim_jax.md) | what `import lowdim_jax as ld` brings, in one table |\n"
    )
    found = {}
    for page, (title, about, _) in PAGES.items():
        index += f"| [{title}]({page}.md) | {about} |\n"
        sections = [f"# {title}"]
        for module, names in modules(page).items():
            summary = inspect.getdoc(importlib.import_module(module)) or ""
            sections.append(f"## {module}\n\n{summary.partition(chr(10))[0]}")
            sections += [f"::: {module}.{name}" for name in names]
        found[DOCS / "reference" / f"{page}.md"] = "\n\n".join(sections) + "\n"
    found[DOCS / "reference" / "index.md"] = index
    found[DOCS / "reference" / "lowdim_jax.md"] = TOP + "\n".join(top_rows()) + "\n"
    found[DOCS / "gallery.md"] = gallery()
    found[HERE / "description.md"] = description()
    for name, rows in (("checks", check_rows()), ("figures", figure_rows())):
        path = DOCS / f"{name}.md"
        found[path] = with_rows(path.read_text("utf-8"), rows)
    return found


def modules(page: str) -> dict[str, list[str]]:
    """Modules on a page, with the public names that each defines, in the order of its file."""
    found: dict[str, list[str]] = {}
    for room in [*rooms(), *CHECKS]:
        inside = any(f"{room}.".startswith(f"{top}.") for top in PAGES[page][2])
        if not inside or room in WORKSHOPS:
            continue
        module, known = importlib.import_module(room), public(room)
        names = CHECKS.get(room) or [
            name for name in vars(module) if name in known and known[name].__module__ == room
        ]
        if names:
            found[room] = list(names)
    return found


def top_rows() -> list[str]:
    """A row for each name that `lowdim_jax` exports."""
    import lowdim_jax

    page_of = {module: page for page in PAGES for module in modules(page)}
    rows = []
    for name in lowdim_jax.__all__:
        value = getattr(lowdim_jax, name)
        home = getattr(value, "__module__", "")
        link = f"[`ld.{name}`]({page_of[home]}.md#{home}.{name})" if home in page_of else f"`ld.{name}`"
        ours = inspect.ismodule(value) or home in page_of
        about = inspect.getdoc(value) if ours else "A tuple of weight matrices, input to output."
        rows.append(f"| {link} | {cell((about or '').partition(chr(10))[0])} |")
    return rows


def check_rows() -> list[str]:
    """A row for each check."""
    from theory_checks.selection import all_checks

    return [f"| `{check.name}` | {cell(check.claim)} | {check.source} |" for check in all_checks()]


def figure_rows() -> list[str]:
    """A row for each figure."""
    from figures import registry

    return [f"| `{name}` | {cell(registry.describe(name).summary)} |" for name in registry.names()]


def gallery() -> str:
    """A section for each figure: what it shows, its settings at both sizes, its picture at size small."""
    from figures import registry
    from figures.gallery import settings_line

    sections = [GALLERY.rstrip()]
    for name in registry.names():
        figure = registry.describe(name)
        settings = [f"- *{size}*: {settings_line(dict(given))}" for size, given in figure.settings.items()]
        sections += [f"## {name}", figure.summary, "\n".join(settings)]
        for folder, size in (("gallery", "small"), ("paper", "paper")):
            files = [f"{name}.png", f"{name}-lines.png", f"{name}.gif"]
            found = [file for file in files if (DOCS / "images" / folder / file).exists()]
            if size == "paper" and found:
                sections.append("At size paper:")
            sections += [f"![{figure.summary} Size {size}.](images/{folder}/{file})" for file in found]
    return "\n\n".join(sections) + "\n"


def description() -> str:
    """The README as a package index shows it: no pictures, and no links to files, which are not there.

    An index renders pictures only from an address on the web, and there is none yet that would keep them.
    """
    text = (ROOT / "README.md").read_text("utf-8")
    text = re.sub(r":?\n\n!\[[^\]]*\]\([^)]*\)\n", ".\n", text)
    text = re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", text)
    return text.replace("<!-- tests -->\n", "")


def cell(text: str) -> str:
    """Text for a cell of a table: a bar would end it."""
    return text.replace("|", "\\|")


def with_rows(text: str, rows: list[str]) -> str:
    """A page with the rows of its first table replaced."""
    lines = text.split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith("|---")) + 1
    end = next(number for number in range(start, len(lines)) if not lines[number].startswith("|"))
    return "\n".join([*lines[:start], *rows, *lines[end:]])


def main() -> None:
    """Write all of them."""
    for path, text in pages().items():
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
