"""Several real processes over loopback: own data, a lost process, restart, another number of devices."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowdim_jax as ld
from lowdim_jax import distributed
from lowdim_jax._command import BAD_INPUT
from lowdim_jax.checkpoints import Checkpoints
from lowdim_jax.distributed import command, worker
from lowdim_jax.distributed.shards import even_bounds, open_shards, split, synthesize, write_shards

SHAPE, STEPS, TIMEOUT = (203, 60), 100, 5
SETTINGS = f"--rank 6 --scale 0.3 --steps {STEPS} --check-every 5 --timeout {TIMEOUT}".split()

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five files of 203 rows, which are 102 and 101 of two processes."""
    bounds = even_bounds(SHAPE[0], 5)
    parts = synthesize(SHAPE, bounds, rank=3, observations=5000)
    return write_shards(tmp_path_factory.mktemp("data"), parts, shape=SHAPE, bounds=bounds).folder


def environment(devices):
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
    }


def free_address():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


class Command:
    """The command in a process of its own, which is ended with its children when the test is over."""

    def __init__(self, *arguments, devices=2):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lowdim_jax.distributed", *map(str, arguments)],
            env=environment(devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()  # its children see their standard input end, and end
        self.process.wait()

    def wait_for(self, text):
        for line in self.process.stdout:
            if line.startswith(text):
                return
        raise AssertionError(self.process.stderr.read())

    def worker(self):
        """Process id of its first child."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def end(self, timeout=120):
        out, error = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, error


def run(*arguments, **settings):
    with Command(*arguments, **settings) as started:
        code, out, error = started.end()
    assert code == 0, error
    return out


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """Standard output and checkpoints of two processes with two devices each."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    return run("train", data, folder, *SETTINGS, "--processes", 2), folder


@pytest.fixture(scope="module")
def killed(data, tmp_path_factory):
    """Two commands as on two hosts, the second's process killed; how the first one ended; checkpoints."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    coordinator = free_address()
    first, second = (
        Command("train", data, folder, *SETTINGS, "--coordinator", coordinator, "--num-processes", 2,
                "--process-id", k) for k in range(2)
    )  # fmt: skip
    with first, second:
        first.wait_for("step 10 ")
        os.kill(second.worker(), signal.SIGKILL)
        start = time.monotonic()
        ends = first.end(), second.end()
    return ends, time.monotonic() - start, folder


def saved(folder):
    """The whole network in double precision, and settings, of a finished run."""
    checkpoints = Checkpoints(folder)
    assert checkpoints.latest == STEPS
    network, settings = checkpoints.network(), checkpoints.settings()
    assert network[-1].dtype == np.float64
    checkpoints.close()
    return network, settings


def test_every_process_has_its_own_rows_only(uninterrupted):
    out, _ = uninterrupted
    told = re.findall(r"process (\d) of 2: 2 devices, rows (\d+) to (\d+), (\d+) of (\d+) entries", out)
    (first, second) = sorted(tuple(map(int, line)) for line in told)
    assert first[:3] == (0, 0, 102)
    assert second[:3] == (1, 102, 203)
    assert first[3] + second[3] == first[4] == second[4]
    assert max(first[3], second[3]) < 0.55 * first[4]


def test_two_processes_train_as_one_device_does(data, uninterrupted, x64):
    out, folder = uninterrupted
    network, settings = saved(folder)
    entries = open_shards(data).read(range(SHAPE[0]))
    one = ld.observed_completion(*entries, shape=SHAPE)
    mesh = distributed.mesh(jax.devices()[:1])
    start = ld.compress(
        distributed.sharded_completion(*entries, shape=SHAPE, mesh=mesh), depth=3, scale=0.3, rank=6
    )
    rate = 0.5 * float(ld.max_learning_rate(one, depth=3))
    assert settings["learning_rate"] == pytest.approx(rate, rel=1e-12)
    reference = ld.gradient_descent(one.loss, start, ld.GradientDescent(rate), steps=STEPS, record_every=5)
    assert reference.losses[-1] < 0.5 * reference.losses[0]
    for layer, expected in zip(network, reference.weights, strict=True):
        np.testing.assert_allclose(layer, expected, rtol=0, atol=1e-10)
    steps, losses = np.transpose([row[:2] for row in settings["history"]])
    np.testing.assert_array_equal(steps, reference.steps)
    np.testing.assert_allclose(losses, reference.losses, rtol=1e-10)
    assert out.count("\nstep ") == len(steps)


def test_two_processes_stop_and_are_evaluated_on_entries_held_out(data, tmp_path):
    """Entries of variance one and rank 3: what was held out is predicted far better than by zero."""
    settings = [*SETTINGS[:4], "--steps", 200, "--check-every", 20, "--hold-out", 0.2, "--processes", 2]
    settings += ["--across", 2, "--effects"]  # a process's two devices cut the columns
    out = run("train", data, tmp_path / "run", *settings)
    error = float(re.search(r"held out: root mean square error (\S+) at step", out)[1])
    assert 0 < error < 0.5
    first, *_, last = Checkpoints(tmp_path / "run").network()
    assert (len(last), first.shape[1]) == SHAPE
    effects = np.load(tmp_path / "run" / "effects.npz")
    assert (effects["W2"] @ effects["W1"]).shape == SHAPE


def test_a_lost_process_is_a_clear_error_in_bounded_time(killed):
    ((first, _, first_error), (second, _, second_error)), seconds, _ = killed
    assert first == second == command.LOST
    assert "process 0 lost the connection to another process" in first_error
    assert "process 1 was ended by SIGKILL" in second_error
    for error in (first_error, second_error):
        assert len(error.strip().splitlines()) == 1
        assert re.search(r"the same command goes on from its checkpoint at step \d+", error)
    assert seconds < 4 * TIMEOUT + 10


def test_a_restart_loses_nothing(data, killed, uninterrupted, tmp_path, x64):
    """From the checkpoint of the killed run: the same again, and on one process with eight devices."""
    *_, folder = killed
    copy = shutil.copytree(folder, tmp_path / "copy")
    out = run("train", data, folder, *SETTINGS, "--processes", 2)
    assert int(re.search(r"goes on from step (\d+)", out)[1]) >= 10
    _, reference = uninterrupted
    for layer, expected in zip(saved(folder)[0], saved(reference)[0], strict=True):
        np.testing.assert_array_equal(layer, expected)

    run("train", data, copy, *SETTINGS, devices=8)
    for layer, expected in zip(saved(copy)[0], saved(reference)[0], strict=True):
        np.testing.assert_allclose(layer, expected, rtol=0, atol=1e-10)


@pytest.fixture(scope="module")
def other_data(tmp_path_factory):
    """Entries at the same places as `data`'s, one of them with another value."""
    bounds = even_bounds(SHAPE[0], 5)
    rows, columns, values = (np.concatenate(part) for part in zip(
        *synthesize(SHAPE, bounds, rank=3, observations=5000), strict=True
    ))  # fmt: skip
    values[7] += 1e-6
    parts = split((rows, columns, values), bounds)
    return write_shards(tmp_path_factory.mktemp("other"), parts, shape=SHAPE, bounds=bounds).folder


@pytest.mark.parametrize(
    ("folder", "changed", "message"),
    [
        ("data", {"depth": 4}, "was written with depth=3, now it is 4"),
        ("data", {"learning_rate": 0.001}, "now it is 0.001"),
        ("data", {"alpha": 2.0}, "was written with alpha=1.0, now it is 2.0"),
        ("other_data", {}, "was written for other data"),
    ],
)
def test_a_run_does_not_go_on_with_other_settings_or_data(
    request, uninterrupted, folder, changed, message, x64
):
    """One process of a run, which is this one."""
    _, run = uninterrupted
    before = sorted(run.iterdir())
    given = command._parser().parse_args(["train", str(request.getfixturevalue(folder)), str(run), *SETTINGS])
    with pytest.raises(ValueError, match=re.escape(message)):
        worker.train(vars(given) | {"process_id": 0, "num_processes": 1} | changed, print)
    assert sorted(run.iterdir()) == before


def test_a_run_that_does_not_go_on_ends_with_one_sentence(data, uninterrupted):
    _, run = uninterrupted
    with Command("train", data, run, *SETTINGS, "--depth", 4) as started:
        code, _, error = started.end()
    assert code == BAD_INPUT
    assert "was written with depth=3, now it is 4" in error
    assert len(error.strip().splitlines()) == 1


def test_a_run_that_diverges_says_so_and_keeps_its_last_finite_state(data, tmp_path, x64):
    folder = tmp_path / "run"
    with Command("train", data, folder, *SETTINGS, "--learning-rate", 0.1, devices=1) as started:
        code, out, _ = started.end()
    assert code == command.DIVERGED
    assert "diverged: the loss is not finite at step" in out
    checkpoints = Checkpoints(folder)
    assert all(np.isfinite(layer).all() for layer in checkpoints.network())
    checkpoints.close()


def test_two_processes_with_their_own_measurements_train_sensing_as_one_device_does(x64):
    script, address = Path(__file__).with_name("sensing_process.py"), free_address()
    processes = [
        subprocess.Popen(
            [sys.executable, script, address, str(k)],
            env=environment(devices=2),
            stdout=subprocess.PIPE,
            text=True,
        )
        for k in range(2)
    ]
    try:
        told = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [part["own"] for part in told] == [[0, 152], [152, 301]]
    matrices = [np.random.default_rng(k).standard_normal((12, 10)) / 301**0.5 for k in range(301)]
    truth = np.outer(np.arange(12.0), np.ones(10)) / 10
    problem = ld.sensing(jnp.asarray(matrices), truth=jnp.asarray(truth))
    weights = ld.compress(problem, depth=3, scale=0.3, rank=4)
    rate = 0.3 * ld.max_learning_rate(problem, depth=3)
    losses = ld.gradient_descent(problem, weights, ld.GradientDescent(rate), steps=50).losses
    assert losses[-1] < 0.5 * losses[0]
    for part in told:
        np.testing.assert_allclose(part["losses"], losses, rtol=1e-10)
