"""Every tutorial runs from start to end, as a reader would run it, and draws what it talks about."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("tutorials", ROOT / "docs" / "site" / "tutorials.py")
assert _spec is not None
assert _spec.loader is not None
tutorials = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tutorials)


OPTIMIZED = {"a-million-wide", "complete-a-matrix"}
"""Others compile for longer than they run."""


@pytest.mark.parametrize("source", tutorials.sources(), ids=lambda source: source.stem)
def test_a_tutorial_runs_and_shows_pictures(source, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", str(int(source.stem not in OPTIMIZED)))
    record = tutorials.run(source, fresh=True)
    assert record["pictures"]
    assert any(output["text"] for output in record["outputs"])


def test_there_are_the_five_tutorials_that_the_index_lists():
    index = (tutorials.FOLDER / "index.md").read_text("utf-8")
    assert len(tutorials.sources()) == 5
    for source in tutorials.sources():
        assert f"({source.stem}.md)" in index


def test_cells_are_text_and_code_in_order():
    text = "# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\na = 1\n\n\n# %%\nprint(a)\n"
    expected = [("markdown", "# Title\n\nText."), ("code", "a = 1"), ("code", "print(a)")]
    assert tutorials.cells(text) == expected
