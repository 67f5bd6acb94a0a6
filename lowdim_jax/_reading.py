"""Reading what people give: regular files of any size and encoding, and short names in messages."""

import gzip
import stat
from pathlib import Path

LARGEST = 2**31
"""Bytes of a text, or of an archive's member, that are read at most: more is not what it seems to be."""
GZIP = b"\x1f\x8b"
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}


def short(value: object, /, width: int = 60) -> str:
    """`repr`, with the middle of a long one left out: a message stays a line or two.

    >>> short("abcdefghij" * 20, 20)
    "'abcdefgh…bcdefghij'"
    """
    text = repr(value)
    if len(text) <= width:
        return text
    left = width // 2 - 1
    return f"{text[:left]}…{text[left + 1 - width:]}"


def named(path: Path | str, /) -> str:
    """The name of a file in a message: cut only where it is longer than a line."""
    return short(str(path), 120)


def because(error: BaseException, /, width: int = 160) -> str:
    """What an exception says, in one line of bounded length; its type where it says nothing.

    >>> because(ValueError("first line\\n  second line"))
    'first line second line'
    """
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(said.split()) or type(error).__name__
    return text if len(text) <= width else f"{text[:width - 1]}…"


def number_of(text: str, /) -> float:
    """A number as other programs write it: `float` alone would take `1_0` and digits of any script.

    Raises
    ------
    ValueError
        If it is none.

    >>> number_of(" -1.5e3")
    -1500.0
    """
    try:
        if text.isascii() and "_" not in text:
            return float(text)
    except ValueError:
        pass
    raise ValueError(f"could not convert {short(text)} to a number")


def regular_file(path: Path, what: str, /) -> int:
    """Size of a regular file in bytes: a pipe would be waited for, and a device never ends.

    Raises
    ------
    ValueError
        In one sentence that begins with `what`, if it is not there or something else.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ValueError(f"{what} cannot be read: {because(error)}") from error
    if stat.S_ISDIR(found.st_mode):
        raise ValueError(f"{what} cannot be read: Is a directory")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{what} cannot be read: it is a pipe or a device, expected a regular file")
    return found.st_size


def read_bytes(path: Path, what: str, /) -> bytes:
    """Content of a regular file, unpacked where it begins as gzip does, up to `LARGEST` bytes.

    Raises
    ------
    ValueError
        In one sentence that begins with `what`.
    """
    size = regular_file(path, what)
    try:
        with path.open("rb") as file:
            packed = file.read(2) == GZIP
        if not packed and size > LARGEST:
            raise ValueError(f"it has {size:,} bytes, expected at most {LARGEST:,}")
        with gzip.open(path) if packed else path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except Exception as error:  # gzip, zlib and memory each raise their own
        raise ValueError(f"{what} cannot be read: {because(error)}") from error
    if len(content) > LARGEST:
        raise ValueError(f"{what} cannot be read: it unpacks to more than {LARGEST:,} bytes")
    return content


def read_utf8(path: Path, what: str, /) -> bytes:
    """Text of a file as UTF-8: as `read_text`, but no copy is made of what is UTF-8 already."""
    content = read_bytes(path, what)
    if b"\0" not in content and not content.startswith(tuple(_MARKS)):
        try:
            if not content.isascii():
                content.decode()
            return content
        except UnicodeDecodeError:
            pass
    return _text(content, what).encode()


def read_text(path: Path, what: str, /) -> str:
    """Text of a file: UTF-8, UTF-16 with its mark, or else Latin-1 (of Windows); gzip is unpacked.

    Raises
    ------
    ValueError
        In one sentence that begins with `what`, if it cannot be read or is no text.
    """
    return _text(read_bytes(path, what), what)


def _text(content: bytes, what: str) -> str:
    marked = next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)
    place = 0
    for encoding in (marked,) if marked else ("utf-8", "cp1252"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError as error:
            place = error.start
            continue
        if (place := text.find("\0")) < 0:
            return text
        break
    raise ValueError(f"{what} cannot be read: it is no text, which byte {place + 1} shows")
