"""JAX's persistent compilation cache, for the command lines; importing the library leaves it alone."""

import os
from pathlib import Path

import jax


def cache_programs() -> None:
    """Keep compiled programs in the user's cache directory, so that the next run starts at once.

    `JAX_COMPILATION_CACHE_DIR` overrides the place, `JAX_ENABLE_COMPILATION_CACHE=false` turns it off.
    Call it before anything is compiled and before diffrax is imported.
    """
    # Programs with a host callback are not cached, and equinox's runtime errors are such callbacks.
    # The flow reports its failures as a status instead.
    os.environ.setdefault("EQX_ON_ERROR", "nan")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lowdim_jax"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return  # a home that cannot be written to: compile every time
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
