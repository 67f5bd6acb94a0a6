"""What `mkdocs build` does besides: pages from other files, anchors and links of statements, mathematics.

The docs are plain Markdown that reads well in the repository, too. So anchors of statements (`#s3-2`), links
where "docs/theory.md 3.2" is cited, and MathML in place of TeX are put in here.
"""

import re
import sys
from pathlib import Path

from mkdocs.structure.files import File

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import mathematics  # noqa: E402
import prose  # noqa: E402
import tables  # noqa: E402
import tutorials  # noqa: E402

_STATEMENT = re.compile(r"^### ((\d+)\.(\d+) .*)$", re.MULTILINE)
_SECTION = re.compile(r"^## ((\d+)\. .*)$", re.MULTILINE)
_CITED = re.compile(r"docs/theory\.md((?:,? (?:and )?\d+(?:\.\d+)?\b(?![-–]))*)(?!\w)")
_NUMBER = re.compile(r"(\d+)(?:\.(\d+))?")
_NUMBER_CELL = re.compile(r"<td>((?:<strong>)?[−+±≤≥<~]?\d[^<]{0,17}(?:</strong>)?)</td>")
_SHORT_CODE = re.compile(r"<code>([^<]{1,16})</code>")
_MENTION = re.compile(r"(<code\b.*?</code>|<a\b.*?</a>|<pre\b.*?</pre>)|\bdocs/([a-z-]+)\.md\b", re.DOTALL)
_PICTURES = re.compile(r'<p>((?:<img [^>]*src="(?:\.\./)*images/[^>]*>\s*)+)</p>')
_PICTURE = re.compile(r'<img [^>]*alt="([^"]*)"[^>]*>')
_SHIM = "https://unpkg.com/iframe-worker/shim"
"""What the theme loads so that pages on a disk can be searched; `search.js` takes its place."""
_FROM_ELSEWHERE = re.compile(
    r'<(?:script|img|iframe|source)\b[^>]*\bsrc="https?:|<link\b[^>]*stylesheet[^>]*"https?:'
)


def on_files(files, config):
    """Add the pages that are made: changelog, tutorials with their pictures, the explorer."""
    from theory_checks.explorer import page

    def add(name, content):
        files.append(File.generated(config, name, content=content))

    add("changelog.md", (ROOT / "CHANGELOG.md").read_text("utf-8").replace("](docs/", "]("))
    add("explorer-page.html", page())
    for name in ("site.css", "search.js"):
        add(name, (HERE / name).read_text("utf-8"))
    for source in tutorials.sources():
        shown = tutorials.executed(source)
        add(f"tutorials/{source.stem}.md", shown.markdown)
        add(f"tutorials/{source.stem}.ipynb", shown.notebook)
        for name, picture in shown.pictures.items():
            add(f"tutorials/{name}", picture)
    return files


def on_page_markdown(markdown, page, config, files):
    """Give statements their anchors, and links to files of the repository that are no pages a plain form."""
    if page.file.src_path == "theory.md":
        markdown = _STATEMENT.sub(r"### \1 {#s\2-\3}", _SECTION.sub(r"## \1 {#s\2}", markdown))
    return _links_out(markdown, (ROOT / "docs" / page.file.src_path).parent)


def on_page_content(html, page, config, files):
    """Set mathematics, and link statements where they are cited."""
    html = _PICTURES.sub(_captioned, mathematics.set_all(html))
    if page.file.src_path in tables.PAGES:
        html = tables.with_links(html, page.file.src_path)
    html = prose.returned(html)
    up = "../" * page.file.src_path.count("/")

    def number(found):
        anchor = f"s{found[1]}-{found[2]}" if found[2] else f"s{found[1]}"
        return f'<a href="{up}theory.html#{anchor}">{found[0]}</a>'

    def link(cited):
        return f'<a href="{up}theory.html">Theory</a>{_NUMBER.sub(number, cited[1])}'

    html = _NUMBER_CELL.sub(r'<td class="number">\1</td>', _CITED.sub(link, html))
    html = _SHORT_CODE.sub(r'<code class="short">\1</code>', html)  # `α = 1` stays on one line
    return _MENTION.sub(lambda found: found[1] or _linked(found, up), html)


def _linked(mention, up):
    """A page that a sentence names by its file, as a link."""
    name = mention[2]
    known = (ROOT / "docs" / f"{name}.md").exists()
    return f'<a href="{up}{name}.html">{name.replace("-", " ")}</a>' if known else mention[0]


def _captioned(found):
    """Pictures that are a paragraph of their own, with what they show below each."""
    images = _PICTURE.finditer(found[1])
    return "".join([f"<figure>{one[0]}<figcaption>{one[1]}</figcaption></figure>" for one in images])


def on_post_page(output, page, config):
    """Search without a network; raises `ValueError` if the page would load anything from elsewhere."""
    up = "../" * page.file.src_path.count("/")
    output = output.replace(_SHIM, f"{up}search.js")
    found = _FROM_ELSEWHERE.search(output)
    if found:
        raise ValueError(f"{page.file.src_path} loads from elsewhere: {found[0]}")
    return output


def on_post_template(output, template_name, config):
    """The page of what is not found needs no worker on a disk."""
    return output.replace(f'<script src="{_SHIM}"></script>', "")


_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#]+)\)")


def _links_out(markdown, folder):
    """A link to a file outside of docs is only its name: the site does not hold it."""

    def kept(link):
        target = (folder / link[2]).resolve()
        return link[0] if target.is_relative_to(ROOT / "docs") else link[1]

    return _LINK.sub(kept, markdown)
