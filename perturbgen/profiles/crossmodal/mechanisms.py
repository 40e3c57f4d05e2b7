"""What two assays say of mechanisms alone and together: concatenated, in a shared space, averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pandas as pd

from perturbgen.errors import SchemaError
from perturbgen.evaluate.bootstrap import interval, means, resample
from perturbgen.profiles.crossmodal.methods import Setting
from perturbgen.profiles.crossmodal.pairs import Paired
from perturbgen.profiles.crossmodal.protocol import Split, choose, splits
from perturbgen.profiles.crossmodal.spaces import Spectrum, decompose
from perturbgen.profiles.imaging.nsc import mechanism_folds
from perturbgen.profiles.imaging.paired import mean_f1

Array = np.ndarray[Any, Any]
COMPONENTS: Final = 50
Features = Callable[[Array], list[Array]]


def mechanism_table(
    pairs: Paired,
    shared: list[Setting],
    *,
    folds: int,
    inner: int,
    draws: int,
    rng: np.random.Generator,
    names: tuple[str, str] = ("images", "L1000"),
) -> pd.DataFrame:
    """Accuracy (95 % interval over compounds) and mean F1 of a shrunk linear discriminant on withheld compounds.

    Mechanisms of fewer than two compounds are left out. The folds hold each mechanism's compounds apart.
    """
    kept = with_mechanism(pairs)
    moa = kept.meta["moa"].to_numpy()
    fold = mechanism_folds(kept.meta.reset_index(drop=True), folds, rng=rng)
    said: dict[str, Array] = {}
    for held in range(folds):
        rows, train = np.flatnonzero(fold == held), np.flatnonzero(fold != held)
        for name, values in predictions(kept, train, rows, shared, inner, rng, names).items():
            said.setdefault(name, np.empty(len(kept), object))[rows] = values
    counts = resample(len(kept), draws, rng, kept.meta["compound"].tolist())
    right = np.array([values == moa for values in said.values()], float)
    low, high = interval(means(right, counts))
    table = pd.DataFrame({"features": list(said), "n": len(kept), "mechanisms": len(np.unique(moa))})
    table["accuracy"], table["low"], table["high"] = right.mean(axis=1), low, high
    table["mean F1"] = [mean_f1(pd.Series(moa), pd.Series(values)) for values in said.values()]
    return table.assign(largest=pd.Series(moa).value_counts(normalize=True).iloc[0])


def with_mechanism(pairs: Paired) -> Paired:
    """The perturbations whose mechanism has two compounds or more."""
    count = pairs.meta.groupby("moa")["compound"].nunique()
    kept = pairs.meta["moa"].isin(count.index[count > 1])
    if pairs.meta["moa"][kept].nunique() < 2:
        raise SchemaError("fewer than two mechanisms have two compounds", expected="mechanisms to learn and to test",
                          fix="say which column holds them, or leave mechanisms out")  # fmt: skip
    return Paired(pairs.first[kept], pairs.second[kept], pairs.meta[kept])


def predictions(
    pairs: Paired, train: Array, held: Array, shared: list[Setting], inner: int, rng: np.random.Generator,
    names: tuple[str, str],
) -> dict[str, Array]:  # fmt: skip
    """What is said of the held rows from each set of features."""
    split = Split(train, held, *(decompose(side.to_numpy()[train]) for side in (pairs.first, pairs.second)))
    setting = choose(pairs, list(splits(pairs, train, inner, rng=rng)), shared)
    space = setting.fit(split.first, split.second)[0]
    one, other = components(pairs.first, split.first), components(pairs.second, split.second)
    both = np.hstack([space.first.transform(pairs.first.to_numpy()), space.second.transform(pairs.second.to_numpy())])
    features = {names[0]: one, names[1]: other, "concatenated": np.hstack([one, other]), "RGCCA": both}
    classes, labels = np.unique(pairs.meta["moa"].to_numpy()[train].astype(str), return_inverse=True)
    likely = {name: discriminant(values[train], labels, values[held]) for name, values in features.items()}
    likely["averaged"] = (likely[names[0]] + likely[names[1]]) / 2
    return {name: classes[values.argmax(axis=1)] for name, values in likely.items()}


def components(table: pd.DataFrame, spectrum: Spectrum) -> Array:
    """(rows, components) of all rows, the axes fitted on training rows; total training variance one for each assay."""
    leading = spectrum.leading(COMPONENTS)
    scores = leading.projection(leading.v, leading.s).transform(table.to_numpy())
    return np.asarray(scores / np.sqrt((leading.s**2).sum() / len(leading.u)))


def discriminant(train: Array, labels: Array, held: Array) -> Array:
    """(held rows, classes) probabilities of a linear discriminant with Ledoit and Wolf's covariance."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(train, labels)
    return np.asarray(model.predict_proba(held))
