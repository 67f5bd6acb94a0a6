"""Run a script in cells, and write down what each cell prints and draws: `run_cells.py SCRIPT RECORD`."""

import base64
import contextlib
import io
import json
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from tutorials import cells


def main(script: Path, record: Path) -> None:
    """Run all cells in one namespace; figures that are open after a cell are its pictures."""
    plt.rcParams.update({"figure.figsize": (8, 3.2), "figure.dpi": 110, "axes.grid": True, "grid.alpha": 0.3})
    names, outputs, pictures, start = {"__name__": "__main__"}, [], {}, time.perf_counter()
    for kind, body in cells(script.read_text("utf-8")):
        printed, drawn, title = io.StringIO(), [], ""
        if kind == "code":
            with contextlib.redirect_stdout(printed):
                exec(compile(body, str(script), "exec"), names)
            for number in plt.get_fignums():
                figure, picture = plt.figure(number), io.BytesIO()
                title = title or next(
                    (axes.get_title() for axes in figure.axes if axes.get_title()), "figure"
                )
                figure.savefig(picture, format="png", bbox_inches="tight")
                name = f"{script.stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64encode(picture.getvalue()).decode()
                drawn.append(name)
                plt.close(figure)
        outputs.append({"text": printed.getvalue(), "pictures": drawn, "title": title})
    record.parent.mkdir(parents=True, exist_ok=True)
    seconds = time.perf_counter() - start
    temporary = record.with_suffix(".part")
    temporary.write_text(json.dumps({"outputs": outputs, "pictures": pictures, "seconds": seconds}), "utf-8")
    temporary.replace(record)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
