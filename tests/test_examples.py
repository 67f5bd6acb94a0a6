"""Every public name has an example in its docstring, and every example is right."""

import doctest
import importlib
import inspect
import pkgutil

import jax
import pytest

import lowdim_jax
import theory_checks

COMMANDS = ("__main__", "command", "worker", "cli")
# Rooms whose names are for other rooms of the project.
WORKSHOPS = (
    "lowdim_jax.checked_run",
    "lowdim_jax.checkpoints",
    "lowdim_jax.closing",
    "lowdim_jax.distributed.blocks",
    "lowdim_jax.distributed.rendezvous",
    "lowdim_jax.growing",
    "lowdim_jax.nn.deltas",
    "lowdim_jax.nn.gradients",
    "lowdim_jax.nn.kernels",
    "lowdim_jax.nn.metric",
    "lowdim_jax.nn.ranks",
    "lowdim_jax.problems.groups",
    "lowdim_jax.problems.noise",
    "lowdim_jax.ratings.columnar",
    "lowdim_jax.ratings.comparison",
    "lowdim_jax.ratings.lines",
    "lowdim_jax.ratings.stored",
)
# The same for single names: checks of arguments, and steps that only solvers take.
TOOLS = {
    "lowdim_jax.descent": {"checked_steps", "checked_tolerance", "initial_state", "take_step"},
    "lowdim_jax.distributed.shards": {"even_bounds", "fingerprint", "read_entries", "split", "synthesize"},
    "lowdim_jax.initialization": {"check_scale"},
    "lowdim_jax.linalg": {"as_factors", "as_matrix", "check_finite", "is_sparse"},
    "lowdim_jax.networks": {"check_depth", "check_fits"},
    "lowdim_jax.nn.conversion": {"cut", "matrix_of"},
    "lowdim_jax.nn.layers": {"at_least_single", "metadata_of", "metadata_of_factor"},
    "lowdim_jax.nn.paths": {"matching", "names_of", "part_at", "replace_everywhere"},
    "lowdim_jax.problems.base": {"as_truth", "held_out"},
    "lowdim_jax.problems.matrix_completion": {"completion_error", "grouped", "half_squared_misfit"},
    "lowdim_jax.trajectory": {"blank", "trim"},
    "lowdim_jax.window": {"hidden_bases", "make_window", "reduce_window", "sample_window"},
}


def rooms():
    """Names of all modules that hold public names."""
    walk = pkgutil.walk_packages(lowdim_jax.__path__, "lowdim_jax.")
    names = [info.name for info in walk if not any(part.startswith("_") for part in info.name.split("."))]
    names = [name for name in names if name.rpartition(".")[2] not in COMMANDS]
    return ["lowdim_jax", *names, "theory_checks", "theory_checks.statements", "theory_checks.explorer"]


def _ours(value):
    return getattr(value, "__module__", "").partition(".")[0] in ("lowdim_jax", "theory_checks")


def public(name):
    """Functions and classes that a module defines for its users, or that its `__all__` names."""
    module = importlib.import_module(name)
    exported = {key: getattr(module, key) for key in getattr(module, "__all__", ())}
    if name not in WORKSHOPS:
        hidden = TOOLS.get(name, ())
        exported |= {
            key: value
            for key, value in vars(module).items()
            if getattr(value, "__module__", None) == name and not key.startswith("_") and key not in hidden
        }
    # A jitted function is neither a function nor a class to `inspect`.
    return {key: value for key, value in exported.items() if callable(value) and _ours(value)}


@pytest.mark.parametrize("name", rooms())
def test_every_public_name_has_an_example(name):
    bare = [key for key, value in public(name).items() if ">>>" not in (inspect.getdoc(value) or "")]
    assert bare == []


@pytest.mark.parametrize(
    "name", [*rooms(), "theory_checks.registry", "theory_checks.runs", "theory_checks.setting"]
)
def test_every_example_is_right(name):
    """In float32, JAX's default, and under the strict settings of all tests."""
    module = importlib.import_module(name)
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(verbose=False)
    said = []
    for example in finder.find(module, name):
        runner.run(example, out=said.append)
    assert runner.failures == 0, "".join(said)
    assert not jax.config.jax_enable_x64


def test_the_lists_of_what_is_not_public_are_kept():
    """A name that somebody exports is not a tool."""
    assert set(WORKSHOPS) <= set(rooms())
    exported = {
        id(getattr(module, key))
        for module in map(importlib.import_module, rooms())
        for key in getattr(module, "__all__", ())
    }
    for name, tools in TOOLS.items():
        module = importlib.import_module(name)
        for tool in tools:
            assert id(getattr(module, tool, None)) not in exported, f"{name}.{tool}"


def test_the_face_of_the_checks_is_documented():
    assert {"Curve", "Evidence", "Setting", "check", "per_seed"} <= set(theory_checks.__all__)
