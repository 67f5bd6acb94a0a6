"""Four devices, run by test_nn_adapters.py: collectives of a sharded model before and after it is adapted.

Prints JSON, for each pattern that it is given: the collectives of each compiled program, by kind, and what
was computed.
"""

import json
import os
import re
import sys
from collections import Counter

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lowdim_jax import nn

KINDS = "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"
init = nnx.initializers.lecun_normal()


class Model(nnx.Module):
    """A perceptron whose first layer is split by outputs and whose second by inputs."""

    def __init__(self, rngs):
        self.up = nnx.Linear(16, 32, kernel_init=nnx.with_partitioning(init, (None, "model")), rngs=rngs)
        self.down = nnx.Linear(32, 16, kernel_init=nnx.with_partitioning(init, ("model", None)), rngs=rngs)

    def __call__(self, x):
        return self.down(jnp.tanh(self.up(x)))


def loss(model, x):
    return jnp.mean(model(x) ** 2)


def collectives(function, *args):
    """Collectives in the compiled program, and the largest number of entries that one of them moves."""
    text = jax.jit(function).lower(*args).compile().as_text() or ""
    found, most = Counter(), 0
    for line in text.splitlines():
        kind = next((k for k in KINDS if re.search(rf" {k}(-start)?\(", line)), None)
        if kind:
            found[kind] += 1
            shapes = re.findall(r"f32\[([\d,]*)\]", line.split(" = ")[1].split(f" {kind}")[0])
            most = max([most, *(int(np.prod([int(n) for n in s.split(",") if n])) for s in shapes)])
    return {"counts": dict(found), "largest": most}


def forward(graph):
    return lambda state, x: nnx.merge(graph, state)(x)


def adapted(pattern):
    """The collectives of a model before and after the layers that match are adapted."""
    model, report = Model(nnx.Rngs(0)), {}
    x = jax.device_put(jax.random.normal(jax.random.key(0), (8, 16)), NamedSharding(mesh, P("data", None)))
    graph, state = nnx.split(model)
    outputs = np.asarray(model(x))
    report["plain"] = collectives(forward(graph), state, x)
    nn.adapt(model, pattern, rank=2, depth=3, loss=loss, batch=(x,))
    layers = {path[0]: layer for path, layer in nnx.iter_modules(model) if path}
    report["specs"] = {
        path: [str(factor[...].sharding.spec) for factor in (layer.delta.inward.kernel, layer.delta.outward)]
        for path, layer in layers.items() if isinstance(layer, nn.Adapted)
    }
    graph, state = nnx.split(model)
    report["adapted"] = collectives(forward(graph), state, x)
    report["same"] = bool(np.array_equal(outputs, np.asarray(model(x))))
    graph, delta, rest = nnx.split(model, nn.DeltaParam, ...)
    slope = jax.grad(lambda delta, rest, x: loss(nnx.merge(graph, delta, rest), x))
    report["gradient"] = collectives(slope, delta, rest, x)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nn.DeltaParam)
    before = float(loss(model, x))
    optimizer.update(model, nnx.grad(loss, argnums=nnx.DiffState(0, nn.DeltaParam))(model, x))
    report["decrease"] = before - float(loss(model, x))
    return report


def compressed():
    """Batch and positions split over both axes of the mesh, features whole: nothing has to travel."""
    graph, state = nnx.split(nn.CompressedLinear(16, 16, rank=4, rngs=nnx.Rngs(1)))
    x = jax.device_put(jnp.ones((8, 4, 16)), NamedSharding(mesh, P("data", "model", None)))
    return collectives(forward(graph), state, x)


mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
with jax.set_mesh(mesh):
    reports = {pattern: adapted(pattern) for pattern in sys.argv[1:]}
    print(json.dumps(reports | {"compressed": compressed()}))
