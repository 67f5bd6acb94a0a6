"""Where and when a run is made: date, command, commit, processor."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path


def circumstances() -> dict[str, str]:
    """Date and command of this process."""
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    if command[0] == "__main__.py":
        command[:1] = ["python", "-m", Path(sys.argv[0]).parent.name]
    return {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "command": shlex.join(command)}


def commit() -> str:
    """The commit the project runs from, `+ changes` if files differ from it; empty outside of a clone."""
    folder = Path(__file__).parents[1]
    if not (folder / ".git").exists():
        return ""
    try:
        head, changes = (
            subprocess.run(
                ["git", "-C", str(folder), *asked], capture_output=True, text=True, check=True
            ).stdout
            for asked in (("rev-parse", "--short=10", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.strip() + (" + changes" if changes.strip() else "")


def processor() -> str:
    """Model of the CPU and number of its cores."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # no Linux, or one that does not say
    cores = os.cpu_count() or 1
    return f"{model}, {cores} core{'s' if cores > 1 else ''}"
