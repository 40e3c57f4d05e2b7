"""What centring by one label after the other does, which nested centring does not."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from sequential import SequentialCentroids

from perturbgen.images import DISEASED, HEALTHY, stream_embeddings
from perturbgen.profiles.correct import NestedCentre
from perturbgen.simulation.images import WRITERS


def design(
    rng: np.random.Generator, *, wells: int = 6, features: int = 5
) -> tuple[np.ndarray, pd.DataFrame, np.ndarray]:
    """Two experiments of two plates of two sites; half the wells are controls; offsets at every
    level.
    """
    keys = itertools.product(["A", "B"], [1, 2], [1, 2], range(wells))
    meta = pd.DataFrame(list(keys), columns=["experiment", "plate", "site", "well"])
    values = rng.normal(size=(len(meta), features))
    for labels in (["experiment"], ["experiment", "plate"], ["experiment", "plate", "site"]):
        values += 10 * rng.normal(size=(8, features))[meta.groupby(labels).ngroup()]
    return values, meta, (meta["well"] < wells // 2).to_numpy()


def test_sequential_centring_depends_on_the_order_and_removes_what_it_names() -> None:
    values, meta, _ = design(np.random.default_rng(3))
    keep = np.r_[0:30, 34:48]  # unbalanced, as real plates are
    values, meta = values[keep], meta.iloc[keep].assign(disease=(keep % 3 == 0))
    one = SequentialCentroids(["experiment", "plate"]).fit_transform(values, meta)
    other = SequentialCentroids(["plate", "experiment"]).fit_transform(values, meta)
    assert np.abs(one - other).max() > 1e-3
    values[meta["disease"]] += 100.0
    gone = SequentialCentroids(["experiment", "disease"]).fit_transform(values, meta)
    sick = meta["disease"].to_numpy()
    assert np.linalg.norm(gone[sick].mean(axis=0) - gone[~sick].mean(axis=0)) < 1e-9
    kept = NestedCentre(["experiment"]).fit_transform(values, meta, control=~sick)
    assert np.linalg.norm(kept[sick].mean(axis=0) - kept[~sick].mean(axis=0)) > 100


def test_centring_by_the_disease_removes_the_disease(tmp_path: Path) -> None:
    folder = WRITERS["rxrx19a"](tmp_path / "data", drugs=0, controls=12, sites=2, features=32)
    profiles = stream_embeddings(folder, tmp_path / "profiles")[0]
    named = profiles.where(profiles.meta["disease_condition"].notna())

    def apart(values: np.ndarray) -> float:
        sides = [values[named.chosen(condition)].mean(axis=0) for condition in (HEALTHY, DISEASED)]
        return float(np.linalg.norm(sides[0] - sides[1]))

    before = apart(np.asarray(named.values))
    seeds = SequentialCentroids(["experiment", "site", "plate", "disease_condition"]).fit_transform(
        named.values, named.meta
    )
    assert apart(seeds) < 1e-5 * before
    kept = SequentialCentroids(["experiment", "site", "plate"]).fit_transform(
        named.values, named.meta
    )
    assert apart(kept) > 0.8 * before
