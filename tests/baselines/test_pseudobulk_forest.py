"""The seed's forest on the tiny simulation: counts in, DE values out, nothing withheld used."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from perturbgen.baselines import make
from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.data import pseudobulk
from perturbgen.de import limma_table
from perturbgen.simulation import SimulatedExperiment, simulate

RNG = np.random.default_rng
KEY = ["cell_type", "compound"]


@pytest.fixture(scope="module")
def experiment() -> SimulatedExperiment:
    return simulate("tiny", seed=0)


@pytest.fixture(scope="module")
def bulk(experiment: SimulatedExperiment) -> AnnData:
    return pseudobulk(experiment.cells(), ["plate", "well", "cell_type"])


@pytest.fixture(scope="module")
def table(bulk: AnnData) -> pd.DataFrame:
    found = limma_table(
        bulk,
        design="~0 + {group} + donor",
        group="compound",
        control=bulk.uns["vehicle"],
        by="cell_type",
    )
    return found.signed_log10_p.dropna()


@pytest.fixture(scope="module")
def split(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.MultiIndex]:
    """Three NK conditions are withheld."""
    wanted = table.index[table.index.get_level_values(0) == "NK cells"][:3]
    return table.drop(wanted), wanted


def forest(bulk: AnnData, **settings: object) -> object:
    return make("pseudobulk_forest", pseudobulk=bulk, trees=20, **settings)


def test_predicts_de_values_of_withheld_conditions(
    bulk: AnnData, split: tuple[pd.DataFrame, pd.MultiIndex]
) -> None:
    train, wanted = split
    found = forest(bulk).fit(train, rng=RNG(0)).predict(wanted)  # type: ignore[attr-defined]
    assert found.index.equals(wanted)
    assert found.columns.equals(train.columns)
    values = found.to_numpy()
    assert np.isfinite(values).all()
    assert (values < 0).any()
    assert (values > 0).any()
    again = forest(bulk).fit(train, rng=RNG(0)).predict(wanted)  # type: ignore[attr-defined]
    pd.testing.assert_frame_equal(found, again, check_exact=True)


def test_samples_of_withheld_conditions_are_not_used(
    bulk: AnnData, split: tuple[pd.DataFrame, pd.MultiIndex]
) -> None:
    train, wanted = split
    changed = bulk.copy()
    hidden = pd.MultiIndex.from_frame(bulk.obs[KEY].astype(str)).isin(wanted)
    assert hidden.any()
    values = changed.X.toarray()
    values[hidden] += 1000
    changed.X = values
    first, second = (forest(b).fit(train, rng=RNG(0)).predict(wanted) for b in (bulk, changed))  # type: ignore[attr-defined]
    pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_drawn_counts_differ_from_means(
    bulk: AnnData, split: tuple[pd.DataFrame, pd.MultiIndex]
) -> None:
    train, wanted = split
    first, second = (
        forest(bulk, draw=draw).fit(train, rng=RNG(0)).predict(wanted)  # type: ignore[attr-defined]
        for draw in (False, True)
    )
    assert not np.allclose(first, second)


def test_without_wells_the_cell_type_answers(
    bulk: AnnData, split: tuple[pd.DataFrame, pd.MultiIndex], caplog: pytest.LogCaptureFixture
) -> None:
    train, _ = split
    new = pd.MultiIndex.from_tuples([("NK cells", "unheard")], names=KEY)
    with caplog.at_level(logging.WARNING, logger="perturbgen"):
        found = forest(bulk).fit(train, rng=RNG(0)).predict(new)  # type: ignore[attr-defined]
    np.testing.assert_allclose(found.iloc[0], train.loc["NK cells"].mean())
    assert "NK cells | unheard" in caplog.text


def test_what_it_cannot_use(bulk: AnnData, table: pd.DataFrame) -> None:
    with pytest.raises(SchemaError, match="no column 'weather'"):
        forest(bulk, covariates=["weather"])
    with pytest.raises(ConfigError, match="no sample of the vehicle 'water'"):
        forest(bulk, vehicle="water")
    with pytest.raises(SchemaError, match=r"lacks 1 genes.*'nogene'"):
        forest(bulk).fit(table.assign(nogene=0.0), rng=RNG(0))  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="needs pseudobulk"):
        make("pseudobulk_forest")
