"""In matrix sensing, too, singular values rise one after another, but their vectors align late.

Source: the paper's incremental-learning figure for matrix sensing; docs/theory.md 1.1, 1.6 and 1.7. Drawn as
`incremental-learning`. The surrogate only estimates the target, so that the compressed network's vectors have
to turn, too, and vectors of early components turn once more when later ones are learned.

Measurements are float32 ones, and the networks float64.
"""

from figures import incremental_learning

compute = incremental_learning.compute
plot = incremental_learning.plot
variants = incremental_learning.variants
animate = incremental_learning.animate
