"""Real tables with entries missing: a sensor's (statsmodels' El Niño) and a photograph (scikit-learn's).

    python tests/benchmarks/real_tables.py elnino photograph

Entries are missing at random (seed 0). Every method sees the others alone, and chooses on them alone; the
error is the root mean square on the missing ones. docs/real-tables.md has the numbers.
"""

import sys
import time
import warnings

import numpy as np

import lowdim_jax as ld
from lowdim_jax import baselines, ratings
from lowdim_jax.problems.base import top_singular_value

PENALTIES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Of soft-impute, in fractions of the largest singular value; chosen on a tenth of the entries."""


def elnino() -> np.ndarray:
    """Sea surface temperatures in °C, 61 years × 12 months."""
    from statsmodels.datasets import elnino  # pyright: ignore[reportMissingImports]

    return elnino.load_pandas().data.to_numpy(float)[:, 1:]


def photograph() -> np.ndarray:
    """Brightness of a photograph from 0 to 1, 106 × 160, each the mean of 4 × 4 pixels."""
    from sklearn.datasets import load_sample_image

    image = load_sample_image("china.jpg").mean(axis=2)[:424] / 255
    return image.reshape(106, 4, 160, 4).mean(axis=(1, 3))


def as_ratings(table: np.ndarray, seen: np.ndarray) -> ratings.Ratings:
    """The seen entries, rows as users, columns as items."""
    rows, columns = np.nonzero(seen)
    names = (tuple(map(str, range(side))) for side in table.shape)
    return ratings.Ratings(rows, columns, table[rows, columns], *names)


def column_means(table, seen):
    return np.broadcast_to(np.nanmean(np.where(seen, table, np.nan), axis=0), table.shape)


def effects(table, seen):
    entries = as_ratings(table, seen)
    return everywhere(ratings.model_of(entries, ratings.estimate_effects(entries)), table)


def iterative_imputer(table, seen):
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    wide = table.shape[1] > 50
    settings = {"max_iter": 3, "n_nearest_features": 20} if wide else {"max_iter": 20}
    return IterativeImputer(random_state=0, **settings).fit_transform(np.where(seen, table, np.nan))


def soft_impute(table, seen):
    entries = as_ratings(table, seen)
    train, held = ratings.hold_out(entries, 0.1, seed=1)

    def complete(part, penalty):
        mean = part.values.mean()
        values = (part.values - mean).astype(np.float32)
        problem = ld.observed_completion(part.users, part.items, values, shape=table.shape)
        top = problem.fraction * float(top_singular_value(problem))
        weights = baselines.soft_impute(problem, penalty=penalty * top, rank=min(table.shape), steps=200)
        return np.asarray(ld.end_to_end(weights)) + mean

    def error(penalty):
        return np.mean((complete(train, penalty)[held.users, held.items] - held.values) ** 2)

    return complete(entries, min(PENALTIES, key=error))


def fit(table, seen):
    mean = table[seen].mean()
    found = ld.fit(ld.completion(np.where(seen, table - mean, 0).astype(np.float32), seen))
    return np.asarray(ld.end_to_end(found.weights)) + mean


def fit_ratings(table, seen):
    model, chosen = ratings.fit_ratings(as_ratings(table, seen))
    print("   ", chosen)
    return everywhere(model, table)


def everywhere(model: ratings.RatingModel, table: np.ndarray) -> np.ndarray:
    """A model's predictions of all entries."""
    rows, columns = (part.ravel() for part in np.indices(table.shape))
    return model.predict(rows, columns).reshape(table.shape)


TABLES = {"elnino": (elnino, (0.2, 0.5)), "photograph": (photograph, (0.5,))}
METHODS = (column_means, effects, iterative_imputer, soft_impute, fit, fit_ratings)


def main(names) -> None:
    """Print the errors of all methods on some tables."""
    warnings.simplefilter("ignore")
    for name in names:
        load, fractions = TABLES[name]
        table = load()
        for fraction in fractions:
            seen = np.random.default_rng(0).random(table.shape) >= fraction
            for method in METHODS:
                begin = time.process_time()
                error = np.sqrt(np.mean((method(table, seen) - table)[~seen] ** 2))
                seconds = time.process_time() - begin
                print(f"{name}, {fraction:.0%} missing: {method.__name__} {error:.4f}, {seconds:.1f} s")


if __name__ == "__main__":
    main(sys.argv[1:] or TABLES)
