"""Checkpoints of runs, on one device or many, which restore on any other number of them; with orbax."""

import contextlib
import gc
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lowdim_jax._host import as_array
from lowdim_jax._reading import because, named
from lowdim_jax.networks import Weights

KEPT = 2
"""Checkpoints that are kept."""


class Checkpoints:
    """A folder of checkpoints; every process saves the parts of the arrays that it has.

    A checkpoint appears under its name when all of it is written: a kill leaves the one before. Rows
    that only fill up a device's block are cut, or added as zeros, where a state is restored on another
    number of devices.

    Raises
    ------
    ValueError
        If the folder cannot be made, or is none.
    """

    def __init__(self, folder: str | Path, /):
        self._name = named(str(folder))
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                Path(folder).absolute(),
                options=ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False),
                item_names=("run", "settings"),
                item_handlers={"run": ocp.PyTreeCheckpointHandler(), "settings": ocp.JsonCheckpointHandler()},
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"checkpoints cannot be kept in {self._name}: {because(error)}") from error

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, run: dict[str, Any], settings: dict[str, Any], /) -> None:
        """Save what a run goes on from, a pytree with its `best` network, and what it was set to, as JSON.

        `shape`, the problem's, is one of the settings.
        """
        both = ocp.args.Composite(run=ocp.args.PyTreeSave(run), settings=ocp.args.JsonSave(settings))
        self._manager.save(step, args=both)

    def settings(self) -> dict[str, Any]:
        """The settings of the newest checkpoint."""
        return self._load(settings=ocp.args.JsonRestore())

    def restore(self, like: dict[str, Any], /) -> dict[str, Any]:
        """The newest run, with the sharding of another one, and as many rows."""

        def how(leaf):
            return ocp.ArrayRestoreArgs(
                sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype, strict=False
            )

        return self._load(run=ocp.args.PyTreeRestore(item=like, restore_args=jax.tree.map(how, like)))

    def network(self) -> Weights:
        """The best network of the newest checkpoint, whole and on one device."""
        saved = self._manager.item_metadata(self._newest())["run"].tree
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        run = self._load(run=ocp.args.PyTreeRestore(item=saved, restore_args=how))
        (first, *middle, last), (d_out, d_in) = run["best"], self.settings()["shape"]
        return tuple(map(as_array, (first[:, :d_in], *middle, last[:d_out])))

    def close(self) -> None:
        """Wait for what is being written."""
        self._manager.close()

    def _load(self, **item):
        """One item of the newest checkpoint."""
        (name,) = item
        step = self._newest()
        with _abandoned_reads_dropped():
            try:
                return self._manager.restore(step, args=ocp.args.Composite(**item))[name]
            except Exception as error:  # what is not whole raises errors of orbax, JSON and files
                reason = because(error)
                error.__traceback__ = None  # its frames hold the other reads
                gc.collect()
        raise ValueError(f"the checkpoint of step {step} in {self._name} cannot be read: {reason}")

    def _newest(self) -> int:
        if self.latest is None:
            raise ValueError(f"there is no checkpoint in {self._name}")
        return self.latest


@contextlib.contextmanager
def _abandoned_reads_dropped() -> Iterator[None]:
    """When one read fails, orbax abandons the others: each prints a traceback of its own as it is collected.

    Within, they are collected in silence; the one sentence of the caller says what happened.
    """
    hook, log = sys.unraisablehook, logging.getLogger("asyncio")
    sys.unraisablehook = lambda _: None
    log.addFilter(_drop)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        log.removeFilter(_drop)


def _drop(_: logging.LogRecord) -> bool:
    return False
