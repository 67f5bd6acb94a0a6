"""The explorer: one self-contained page on which incremental learning can be watched and played with.

The page is assembled from the files beside this one. `theory.js` and `model.js` hold its mathematics
and need no page: tests run them under Node and compare them with the library.
"""

import re
from importlib.resources import files
from pathlib import Path

from lowdim_jax._command import replace_files

_PLACE = re.compile(r"/\* ([a-z]+\.(?:css|js)) \*/")


def page() -> str:
    """The whole page: markup, style and scripts, with nothing left to load.

    >>> "requestAnimationFrame" in page() and "http" not in page()
    True
    """
    return _PLACE.sub(lambda place: _part(place[1]), _part("page.html"))


def write(path: Path, /) -> Path:
    """Write the page to a file, and its folder if there is none; returns the absolute path.

    Raises
    ------
    ValueError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> write(Path(tempfile.mkdtemp(), "explorer.html")).name
    'explorer.html'
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_files(path) as (temporary,):
            temporary.write_text(page(), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--out {str(path)!r} cannot be written: {error.strerror}") from error
    return path.resolve()


def _part(name: str) -> str:
    return files("theory_checks.explorer").joinpath(name).read_text(encoding="utf-8")
