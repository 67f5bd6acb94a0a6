"""In matrix completion, too, singular values rise one after another, but their vectors align late.

Source: the paper's incremental-learning figure for matrix completion; docs/theory.md 1.1, 1.6 and 1.7. Drawn
as `incremental-learning`, with outer learning rates of `α = 5` times the middle one. The surrogate only
estimates the target, so that the compressed network's vectors have to turn, too, and vectors of early
components turn once more when later ones are learned.
"""

from figures import incremental_learning

SETTINGS = {
    "small": {
        "d": 40,
        "r": 4,
        "observed": 0.5,
        "factor": 2,
        "extra": 2,
        "depth": 3,
        "epsilon": 0.03,
        "alpha": 5.0,
        "learning_rate": 2e-3,
        "steps": 1600,
        "record_every": 20,
        "seed": 0,
    },
    "paper": {
        "d": 100,
        "r": 10,
        "observed": 0.3,
        "factor": 2,
        "extra": 2,
        "depth": 3,
        "epsilon": 1e-2,
        "alpha": 5.0,
        "learning_rate": 1e-3,
        "steps": 6000,
        "record_every": 60,
        "seed": 0,
    },
}

compute = incremental_learning.compute
plot = incremental_learning.plot
