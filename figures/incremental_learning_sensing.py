"""In matrix sensing, too, singular values rise one after another, but their vectors align late.

Source: the paper's incremental-learning figure for matrix sensing; docs/theory.md 1.1, 1.6 and 1.7. Drawn as
`incremental-learning`. The surrogate only estimates the target, so that the compressed network's vectors have
to turn, too, and vectors of early components turn once more when later ones are learned.

Measurements are float32 ones, and the networks float64.
"""

from figures import incremental_learning

SETTINGS = {
    "small": {
        "d": 40,
        "r": 3,
        "measurements": 1000,
        "factor": 2,
        "extra": 2,
        "depth": 3,
        "epsilon": 0.03,
        "learning_rate": 4e-3,
        "steps": 1800,
        "record_every": 20,
        "seed": 0,
    },
    "paper": {
        "d": 100,
        "r": 10,
        "measurements": 4000,
        "factor": 2,
        "extra": 2,
        "depth": 3,
        "epsilon": 1e-2,
        "learning_rate": 5e-3,
        "steps": 3600,
        "record_every": 40,
        "seed": 0,
    },
}

compute = incremental_learning.compute
plot = incremental_learning.plot
