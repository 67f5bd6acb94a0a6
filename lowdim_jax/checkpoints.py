"""Checkpoints of runs, on one device or many, which restore on any other number of them; with orbax."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from lowdim_jax._host import as_array
from lowdim_jax._reading import because, named
from lowdim_jax.descent import DescentState
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
        If orbax is not installed.
    """

    def __init__(self, folder: str | Path, /):
        try:
            import orbax.checkpoint as ocp
        except ImportError as error:
            raise ValueError("checkpoints need orbax: pip install 'lowdim-jax[many-devices]'") from error
        self._ocp = ocp
        self._manager = ocp.CheckpointManager(
            Path(folder).absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False),
            item_names=("state", "settings"),
            item_handlers={"state": ocp.PyTreeCheckpointHandler(), "settings": ocp.JsonCheckpointHandler()},
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, state: DescentState, settings: dict[str, Any], /) -> None:
        """Save a state, and settings that can be written as JSON: `shape`, of the problem, among them."""
        args = self._ocp.args
        both = args.Composite(state=args.PyTreeSave(state), settings=args.JsonSave(settings))
        self._manager.save(int(state.step), args=both)

    def settings(self) -> dict[str, Any]:
        """The settings of the newest checkpoint."""
        return self._load(settings=self._ocp.args.JsonRestore())

    def restore(self, like: DescentState, /) -> DescentState:
        """The newest state, with the sharding of another one, and as many rows."""

        def how(leaf):
            return self._ocp.ArrayRestoreArgs(
                sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype, strict=False
            )

        return self._load(
            state=self._ocp.args.PyTreeRestore(item=like, restore_args=jax.tree.map(how, like))
        )

    def network(self) -> Weights:
        """The whole network of the newest checkpoint, on one device."""
        saved = self._manager.item_metadata(self._newest())["state"].tree
        how = jax.tree.map(lambda _: self._ocp.RestoreArgs(restore_type=np.ndarray), saved)
        state = self._load(state=self._ocp.args.PyTreeRestore(item=saved, restore_args=how))
        *others, last = state["weights"]
        return tuple(map(as_array, (*others, last[: self.settings()["shape"][0]])))

    def close(self) -> None:
        """Wait for what is being written."""
        self._manager.close()

    def _load(self, **item):
        """One item of the newest checkpoint."""
        (name,) = item
        step = self._newest()
        try:
            return self._manager.restore(step, args=self._ocp.args.Composite(**item))[name]
        except Exception as error:  # what is not whole raises errors of orbax, JSON and files
            folder = named(str(self._manager.directory))
            raise ValueError(
                f"the checkpoint of step {step} in {folder} cannot be read: {because(error)}"
            ) from error

    def _newest(self) -> int:
        if self.latest is None:
            raise ValueError(f"there is no checkpoint in {str(self._manager.directory)!r}")
        return self.latest
