"""Problems spread over devices, in a process with eight virtual ones: `eight_devices.py` has the tests."""

import os
import subprocess
import sys
from pathlib import Path


def test_problems_over_eight_virtual_devices():
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-m", "pytest", str(Path(__file__).with_name("eight_devices.py"))]
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--durations=8"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
