"""Tutorials: scripts in cells (`# %%`), executed, with what they print and draw below each cell.

Each is a script that any Python runs, and a notebook for Jupytext, VS Code and others. `run`
runs one in a process of its own. What came out is kept in `.cache/tutorials` until the script changes:
tests and site share one run.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "tutorials"
CACHE = ROOT / ".cache" / "tutorials"
_CELL = re.compile(r"^# %%(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Executed:
    """A tutorial as Markdown with its pictures by name, and as a notebook."""

    markdown: str
    notebook: str
    pictures: dict[str, bytes]


def sources() -> list[Path]:
    """The tutorials."""
    return sorted(FOLDER.glob("*.py"))


def cells(text: str) -> list[tuple[str, str]]:
    """Kind and content of each cell: `markdown`, with its comment signs taken off, or `code`."""
    marks = [*_CELL.finditer(text)]
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    found = []
    for mark, end in zip(marks, ends, strict=True):
        body = text[mark.end() : end].strip("\n")
        if "[markdown]" in mark[1]:
            found.append(("markdown", re.sub(r"^# ?", "", body, flags=re.MULTILINE)))
        else:
            found.append(("code", body))
    return found


def run(source: Path, *, fresh: bool = False) -> dict[str, Any]:
    """What the cells of a tutorial print and draw: run, or kept from when the same script ran before.

    Raises
    ------
    RuntimeError
        If it fails, with what Python said.
    """
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    kept = CACHE / f"{source.stem}-{digest}.json"
    if fresh or not kept.exists():
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
        command = [sys.executable, str(Path(__file__).with_name("run_cells.py")), str(source), str(kept)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise RuntimeError(f"{source.name} failed:\n{done.stderr[-3000:]}")
    return json.loads(kept.read_text("utf-8"))


def executed(source: Path) -> Executed:
    """A tutorial with what its cells print and draw."""
    text, record = source.read_text("utf-8"), run(source)
    return Executed(
        _markdown(source, text, record["outputs"]),
        _notebook(text, record["outputs"], record["pictures"]),
        {name: base64.b64decode(data) for name, data in record["pictures"].items()},
    )


def _markdown(source: Path, text: str, outputs: list[dict]) -> str:
    parts = []
    for (kind, body), output in zip(cells(text), outputs, strict=True):
        if kind == "markdown":
            parts.append(body)
            continue
        parts.append(f"```python\n{body}\n```")
        if output["text"].strip():
            parts.append(
                f'<div class="output" markdown>\n\n```text\n{output["text"].rstrip()}\n```\n\n</div>'
            )
        parts += [f"![{output['title']}]({name})" for name in output["pictures"]]
    parts.append(f"[This tutorial as a notebook]({source.stem}.ipynb)")
    return "\n\n".join(parts) + "\n"


def _notebook(text: str, outputs: list[dict], pictures: dict[str, str]) -> str:
    import jupytext
    from nbformat.v4 import new_output

    notebook = jupytext.reads(text, fmt="py:percent")
    for cell, output in zip(notebook.cells, outputs, strict=True):
        if cell.cell_type != "code":
            continue
        cell.outputs = [new_output("stream", text=output["text"])] if output["text"] else []
        for name in output["pictures"]:
            cell.outputs.append(new_output("display_data", {"image/png": pictures[name]}))
    return jupytext.writes(notebook, fmt="ipynb")
