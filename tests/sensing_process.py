"""One of two processes that train sensing, each with its own measurements: `… HOST:PORT I`."""

import json
import sys

import jax

address, process = sys.argv[1:]
jax.distributed.initialize(address, 2, int(process))

import numpy as np  # noqa: E402

import lowdim_jax as ld  # noqa: E402
from lowdim_jax import distributed  # noqa: E402

SHAPE, M = (12, 10), 301

mesh = distributed.mesh()
own = distributed.process_rows(M, mesh=mesh)
matrices = np.stack([np.random.default_rng(k).standard_normal(SHAPE) / M**0.5 for k in own])
labels = np.einsum("mij,ij->m", matrices, np.outer(np.arange(12.0), np.ones(10)) / 10)

problem = ld.sensing(*(distributed.spread(part, length=M, mesh=mesh) for part in (matrices, labels)))
weights = ld.compress(problem, depth=3, scale=0.3, rank=4)
rate = 0.3 * ld.max_learning_rate(problem, depth=3)
run = ld.gradient_descent(problem, weights, ld.GradientDescent(rate), steps=50)
print(json.dumps({"own": [own.start, own.stop], "losses": np.asarray(run.losses).tolist()}))
