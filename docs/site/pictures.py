"""Pictures for the pages, from made figures: `python docs/site/pictures.py FOLDER [NAME…] [--size paper]`.

Each becomes as wide as a page, with as many colours as fit into 150 kB, in docs/images/gallery or, of size
paper, docs/images/paper. `python -m figures make --all --out FOLDER` makes them.
"""

import argparse
import io
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parents[1] / "images"
FOLDERS = {"small": IMAGES / "gallery", "paper": IMAGES / "paper"}
WIDTH = 1100
MOST = 150_000
"""Bytes of a picture."""


def shrunk(path: Path) -> bytes:
    """A picture as an indexed PNG, `WIDTH` wide, of at most `MOST` bytes."""
    image = Image.open(path).convert("RGB")
    image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    for colours in (256, 128, 64, 48, 32, 16):
        buffer = io.BytesIO()
        image.quantize(colours).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= MOST:
            return buffer.getvalue()
    raise ValueError(f"{path} does not fit into {MOST} bytes")


def main() -> None:
    """Shrink those named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="stems of pictures; default: all")
    parser.add_argument("--size", choices=FOLDERS, default="small")
    given = parser.parse_args()
    target = FOLDERS[given.size]
    target.mkdir(exist_ok=True)
    for name in given.names or [path.stem for path in given.folder.glob("*.png")]:
        (target / f"{name}.png").write_bytes(shrunk(given.folder / f"{name}.png"))


if __name__ == "__main__":
    main()
