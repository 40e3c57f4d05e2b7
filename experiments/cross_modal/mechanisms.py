"""What two assays say of mechanisms alone and together: joined, in a shared space, averaged."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

from perturbgen.core.errors import SchemaError
from perturbgen.core.stats import interval, means, resample
from perturbgen.images.evaluate import mechanism_folds
from perturbgen.profiles.crossmodal import PairedProfiles, Setting
from perturbgen.profiles.linear import Spectrum

_Array = np.ndarray[Any, Any]
_COMPONENTS: Final = 50


def mechanism_table(
    pairs: PairedProfiles,
    shared: list[Setting],
    *,
    folds: int,
    inner: int,
    draws: int,
    rng: np.random.Generator,
    names: tuple[str, str] = ("images", "L1000"),
) -> pd.DataFrame:
    """Accuracy (95 % interval over compounds) and mean F1 of a shrunk linear discriminant on
    withheld compounds.

    Mechanisms of fewer than two compounds are excluded. The folds hold each mechanism's compounds
    apart.
    """
    kept = _with_mechanism(pairs)
    moa = kept.meta["moa"].to_numpy()
    fold = mechanism_folds(kept.meta.reset_index(drop=True), folds, rng=rng)
    said: dict[str, _Array] = {}
    for held in range(folds):
        rows, train = np.flatnonzero(fold == held), np.flatnonzero(fold != held)
        for name, values in _predictions(kept, train, rows, shared, inner, rng, names).items():
            said.setdefault(name, np.empty(len(kept), object))[rows] = values
    counts = resample(len(kept), draws, rng, kept.meta["compound"].tolist())
    right = np.array([values == moa for values in said.values()], float)
    low, high = interval(means(right, counts))
    table = pd.DataFrame(
        {"features": list(said), "n": len(kept), "mechanisms": len(np.unique(moa))}
    )
    table["accuracy"], table["low"], table["high"] = right.mean(axis=1), low, high
    table["mean F1"] = [
        f1_score(moa, values, labels=pd.unique(moa), average="macro", zero_division=0)
        for values in said.values()
    ]
    return table.assign(largest=pd.Series(moa).value_counts(normalize=True).iloc[0])


def _with_mechanism(pairs: PairedProfiles) -> PairedProfiles:
    """The perturbations whose mechanism has two compounds or more."""
    count = pairs.meta.groupby("moa")["compound"].nunique()
    kept = pairs.meta["moa"].isin(count.index[count > 1]).to_numpy()
    if pairs.meta.loc[kept, "moa"].nunique() < 2:
        raise SchemaError(
            "fewer than two mechanisms have two compounds",
            expected="mechanisms to learn and to test",
            fix="say which column holds them, or leave mechanisms out",
        )
    return PairedProfiles(pairs.first.where(kept), pairs.second.where(kept))


def _predictions(
    pairs: PairedProfiles,
    train: _Array,
    held: _Array,
    shared: list[Setting],
    inner: int,
    rng: np.random.Generator,
    names: tuple[str, str],
) -> dict[str, _Array]:
    """What is said of the held rows from each set of features."""
    spaces = pairs.fit_chosen(train, shared, inner=inner, rng=rng)
    sides = (pairs.first.values, pairs.second.values)
    one, other = (_components(values, train) for values in sides)
    both = np.hstack([space.transform(values) for space, values in zip(spaces, sides, strict=True)])
    features = {
        names[0]: one,
        names[1]: other,
        "concatenated": np.hstack([one, other]),
        "RGCCA": both,
    }
    classes, labels = np.unique(
        pairs.meta["moa"].to_numpy()[train].astype(str), return_inverse=True
    )
    likely = {
        name: _discriminant(values[train], labels, values[held])
        for name, values in features.items()
    }
    likely["averaged"] = (likely[names[0]] + likely[names[1]]) / 2
    return {name: classes[values.argmax(axis=1)] for name, values in likely.items()}


def _components(values: _Array, train: _Array) -> _Array:
    """(rows, components) of all rows, the axes fitted on training rows.

    The total training variance is one, so that neither assay outweighs the other when concatenated.
    """
    leading = Spectrum.of(values[train]).leading(_COMPONENTS)
    scores = leading.projection(leading.v, leading.s).transform(values)
    return np.asarray(scores / np.sqrt((leading.s**2).sum() / len(leading.u)))


def _discriminant(train: _Array, labels: _Array, held: _Array) -> _Array:
    """(held rows, classes) probabilities of a linear discriminant with Ledoit and Wolf's
    covariance.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(train, labels)
    return np.asarray(model.predict_proba(held))
