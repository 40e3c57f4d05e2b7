"""Three other ways to foretell the wells: the seed's median forest, the plate's other wells, an NB
regression.

Each takes the measured wells (labels and the target), the labels of the withheld ones, and returns
draws (rows, n).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

DRAWS = 200
TREES = 1000
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
FOLDS = 5

Floats = NDArray[np.float64]


def median_forest(
    train: pd.DataFrame, test: pd.DataFrame, target: str, *, rng: np.random.Generator
) -> Floats:
    """The seed's: 1000 trees on one-hot cell type, plate and well, controls excluded; a rounded
    point, no spread.
    """
    from sklearn.ensemble import RandomForestRegressor

    train = train[~train["is_control"]]
    x, new = one_hot(train, test, ["cell_type", "plate", "well"])
    model = RandomForestRegressor(TREES, random_state=int(rng.integers(2**31)), n_jobs=-1)
    return np.rint(model.fit(x, train[target]).predict(new))[:, None]


def plate_wells(
    train: pd.DataFrame, test: pd.DataFrame, target: str, *, rng: np.random.Generator
) -> Floats:
    """The measured wells of the same plate and cell type, drawn with replacement: their mean, with
    its spread.
    """
    wells = train.groupby(["plate", "cell_type"])[target]
    return np.stack(
        [
            rng.choice(wells.get_group(key).to_numpy(float), DRAWS)
            for key in zip(test["plate"], test["cell_type"], strict=True)
        ]
    )


def nb_regression(
    train: pd.DataFrame, test: pd.DataFrame, target: str, *, rng: np.random.Generator
) -> Floats:
    """Negative binomial with log mean = plate x cell type + library + compound, ridge penalised.

    The penalty is chosen by the deviance on withheld conditions, and the NB size fitted to the
    errors there.
    """
    pair = train["plate"] + train["cell_type"]
    x, new = one_hot(
        train.assign(pair=pair),
        test.assign(pair=test["plate"] + test["cell_type"]),
        ["pair", "library", "compound"],
    )
    y = train[target].to_numpy(float)
    fold = (
        rng.permutation(FOLDS * 1000)[pd.factorize(train["cell_type"] + train["compound"])[0]]
        % FOLDS
    )
    held = {penalty: left_out_means(x, y, fold, penalty) for penalty in PENALTIES}
    best = min(PENALTIES, key=lambda penalty: poisson_deviance(y, held[penalty]))
    dispersion = max(
        float(((y - held[best]) ** 2 - held[best]).sum() / (held[best] ** 2).sum()), 1e-6
    )
    mean = poisson_regression(x, y, best).predict(new)
    return rng.poisson(
        mean[:, None] * rng.gamma(1 / dispersion, dispersion, (len(mean), DRAWS))
    ).astype(float)


def left_out_means(x: Floats, y: Floats, fold: NDArray[np.int64], penalty: float) -> Floats:
    """Means (rows,) by regressions that did not see a row's fold."""
    means = np.empty(len(y))
    for i in range(FOLDS):
        means[fold == i] = poisson_regression(x[fold != i], y[fold != i], penalty).predict(
            x[fold == i]
        )
    return means


def poisson_regression(x: Floats, y: Floats, penalty: float):
    """A fitted regression with log link."""
    from sklearn.linear_model import PoissonRegressor

    return PoissonRegressor(alpha=penalty, solver="newton-cholesky", max_iter=200).fit(x, y)


def poisson_deviance(y: Floats, mean: Floats) -> float:
    """Half the mean deviance, less what does not depend on the mean."""
    return float((mean - y * np.log(mean)).mean())


def one_hot(train: pd.DataFrame, test: pd.DataFrame, columns: list[str]) -> tuple[Floats, Floats]:
    """Indicator columns of the training values; new values are all zeros."""
    x = pd.get_dummies(train[columns], dtype=float)
    new = pd.get_dummies(test[columns], dtype=float).reindex(columns=x.columns, fill_value=0.0)
    return x.to_numpy(), new.to_numpy()


RIVALS = {
    "the seed's median forest": median_forest,
    "wells of the plate": plate_wells,
    "NB regression": nb_regression,
}
