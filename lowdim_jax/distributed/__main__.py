"""`python -m lowdim_jax.distributed`."""

import sys

from lowdim_jax.distributed.command import main

if __name__ == "__main__":
    sys.exit(main())
