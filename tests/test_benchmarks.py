"""The benchmarks run and write their table."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_a_quick_benchmark_writes_its_table(tmp_path):
    pytest.importorskip("pytest_benchmark")
    suite = Path(__file__).parent / "benchmarks" / "bench_speed.py"
    chosen = "(test_step and not original) or from_data or observed"
    command = ["-m", "pytest", str(suite), "--sizes", "quick", "-k", chosen, "--table", "table.md"]
    environment = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    run = subprocess.run(
        [sys.executable, *command, "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    table = (tmp_path / "table.md").read_text("utf-8")
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {8}
    assert [row[0] for row in rows[2:5]] == [
        f"| step, {network}, d=100" for network in ("reduced", "compressed dense", "compressed factored")
    ]
    assert any("arithmetic" in row or "dispatch" in row for row in rows[2:])
