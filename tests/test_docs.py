"""Every Python example of the README and of docs/ runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def examples(page):
    """The blocks of a page, as one program on the same lines, so that errors name them."""
    text, program, line = page.read_text("utf-8"), [], 1
    for block in BLOCK.finditer(text):
        start = text.count("\n", 0, block.start(1)) + 1
        program.append("\n" * (start - line) + block[1])
        line = start + block[1].count("\n")
    return "".join(program)


def with_examples():
    return [page for page in PAGES if page.exists() and examples(page)]


def test_blocks_are_found_with_their_line_numbers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\na = 1\n```\n\n```sh\nls\n```\n\n```python\nb = a\n```\n")
    program = examples(page)
    assert program.splitlines()[3] == "a = 1"
    assert program.splitlines()[11] == "b = a"
    assert "ls" not in program


OPTIMIZED = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
"""Other pages compile for longer than they run."""


@pytest.mark.parametrize("page", with_examples(), ids=lambda page: page.name)
def test_the_examples_of_a_page_run_in_order(page, tmp_path):
    """In a process of their own, with JAX's default settings but for XLA's: as a reader would run them."""
    program = tmp_path / f"{page.stem}.py"
    program.write_text(examples(page), "utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", str(program)],
        cwd=tmp_path,
        env=os.environ | (OPTIMIZED if page.name == "many-devices.md" else {}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{page.name}, by its line numbers:\n{done.stderr[-3000:]}"


def test_tables_and_reference_pages_are_those_of_the_code(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "site"))
    import generate

    stale = [
        path.name
        for path, text in generate.pages().items()
        if not path.exists() or path.read_text("utf-8") != text
    ]
    assert stale == [], "run python docs/site/generate.py"
    on_pages = {
        name for page in generate.PAGES for names in generate.modules(page).values() for name in names
    }
    assert {"compress", "fit", "mode_time", "CompressedLinear", "sharded_completion", "check"} <= on_pages


def test_the_readme_is_two_screens_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text("utf-8")
    assert text.count("\n") <= 120
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_what_an_index_shows_has_no_picture_and_no_link_that_leads_nowhere_there():
    text = (ROOT / "docs" / "site" / "description.md").read_text("utf-8")
    assert "![" not in text
    assert all(target.startswith("https://") for target in re.findall(r"\]\(([^)]+)", text))
    assert "theory-checks run" in text
    assert "each at a time that a formula gives." in text


def test_every_figure_has_a_picture_of_at_most_150_kilobytes_in_the_gallery():
    from figures.registry import names

    page = (ROOT / "docs" / "gallery.md").read_text("utf-8")
    assert [name for name in names() if f"](images/gallery/{name}.png)" not in page] == []
    pictures = [path for path in (ROOT / "docs" / "images").rglob("*") if path.is_file()]
    assert [path.name for path in pictures if path.stat().st_size > 150_000] == []


def test_cells_of_the_tables_are_set_and_linked(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "site"))
    import tables

    row = "<td><code>merge</code></td><td>W_l &lt; 2 in <code>a_b</code></td><td>1.1, 3.2</td>"
    name, claim, cited = re.findall(r"<td.*?</td>", tables.with_links(row, "checks.md"))
    assert name == '<td id="merge"><code>merge</code></td>'
    assert claim == "<td><i>W</i><sub><i>l</i></sub> &lt; 2 in <code>a_b</code></td>"
    assert cited.count('<a href="theory.html#s') == 2
    assert '<a href="checks.html#merge">' in tables.with_links(row, "coverage.md")


def test_what_a_function_returns_is_sentences_and_formulas_keep_their_punctuation(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "site"))
    import mathematics
    import prose

    line = '<li><code>{}</code> – <div class="doc-md-description"> </div></li>'
    page = f'<p><span class="doc-section-title">Returns:</span></p> <ul>{line.format("Times in `t`, or")}'
    page += f"{line.format('not.')}</ul><p>rest</p>"
    assert prose.returned(page).endswith("Returns:</span> Times in <code>t</code>, or not.</p><p>rest</p>")
    formula = r'<span class="arithmatex">\(a\)</span>'
    assert '<span class="nobreak">(<math' in mathematics.set_all(f"in ({formula}), and")
    assert "nobreak" not in mathematics.set_all(f"in {formula} and")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: a page on a disk cannot be opened")
def test_a_page_on_a_disk_has_a_worker_for_its_search_without_a_network(tmp_path):
    shutil.copy(ROOT / "docs" / "site" / "search.js", tmp_path)
    (tmp_path / "helper.js").write_text("const twice = (x) => 2 * x;")
    (tmp_path / "worker.js").write_text(
        """addEventListener("message", async (event) => {
          await importScripts(new URL("helper.js", document.baseURI));
          postMessage(twice(event.data));
        });"""
    )
    (tmp_path / "page.html").write_text(
        """<script src="search.js"></script><body><pre></pre><script>
        const worker = new Worker("worker.js");
        worker.addEventListener("message", (event) => document.querySelector("pre").append(event.data));
        worker.postMessage(21);
        </script></body>"""
    )
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "<pre>42</pre>" in done.stdout, done.stderr
