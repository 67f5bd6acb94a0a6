"""A second implementation of what the library computes, to compare it with: NumPy loops and mpmath.

Nothing here imports `lowdim_jax` or JAX, and nothing is made fast: every function is a few lines that can
be checked by eye against docs/theory.md. Networks are lists of float64 arrays, input to output.

- `networks`: losses and gradients of the problems, descent, flow, curvature;
- `modes`: closed forms of one singular value, at 30 digits;
- `originals`: what the law of parsimony says of wide networks;
- `random_matrices`: Haar matrices by Gram–Schmidt, and the moments of their entries.
"""

from theory_checks.reference import modes, networks, originals, random_matrices

__all__ = ["modes", "networks", "originals", "random_matrices"]
