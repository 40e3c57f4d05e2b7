from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import InputError, SchemaError
from perturbgen.data.covariates import CovariateEncoder, require_same_genes


@pytest.fixture
def obs() -> pd.DataFrame:
    return pd.DataFrame(
        {"plate": ["q", "p", "q"], "dose": [1.0, 2.0, 3.0], "donor": [2, 1, 2]}, index=list("abc")
    )


def test_one_hot_and_scaled_by_hand(obs: pd.DataFrame) -> None:
    encoder = CovariateEncoder.fit(obs, ["plate", "donor"], ["dose"])
    assert encoder.feature_names == ["plate=p", "plate=q", "donor=1", "donor=2", "dose"]
    sd = np.sqrt(2 / 3)
    expected = [[0, 1, 0, 1, -1 / sd], [1, 0, 1, 0, 0], [0, 1, 0, 1, 1 / sd]]
    assert encoder.features(obs) == pytest.approx(np.array(expected), rel=1e-6)
    assert encoder.features(obs).dtype == np.float32
    assert encoder.codes(obs).tolist() == [[1, 1], [0, 0], [1, 1]]


def test_order_of_cells_and_categories_does_not_matter(obs: pd.DataFrame) -> None:
    shuffled = obs.iloc[[2, 0, 1]].assign(
        plate=lambda t: pd.Categorical(t["plate"], ["q", "p", "z"])
    )
    assert CovariateEncoder.fit(shuffled, ["plate"]) == CovariateEncoder.fit(obs, ["plate"])


def test_a_value_never_seen_is_an_error_that_names_the_nearest(obs: pd.DataFrame) -> None:
    encoder = CovariateEncoder.fit(obs.assign(plate="plate_1"), ["plate"])
    with pytest.raises(SchemaError, match=r"'plat_1'[\s\S]*did you mean 'plate_1'"):
        encoder.features(obs.assign(plate="plat_1"))


def test_a_value_never_seen_is_unknown_where_declared(obs: pd.DataFrame) -> None:
    encoder = CovariateEncoder.fit(obs, ["plate"], unknown=["plate"])
    assert encoder.categories["plate"] == ("p", "q", "unknown")
    assert encoder.codes(obs.assign(plate="new")).ravel().tolist() == [2, 2, 2]
    with pytest.raises(SchemaError, match="not among the categorical"):
        CovariateEncoder.fit(obs, ["plate"], unknown=["donor"])


def test_missing_columns_missing_values_and_text_for_numbers_are_named(obs: pd.DataFrame) -> None:
    with pytest.raises(SchemaError, match=r"no such column[\s\S]*'plate'"):
        CovariateEncoder.fit(obs, ["plates"])
    with pytest.raises(SchemaError, match="missing in 1 cells: 'b'"):
        CovariateEncoder.fit(obs.assign(plate=["q", None, "q"]), ["plate"])
    with pytest.raises(SchemaError, match="not a finite number in 1 cells: 'much'"):
        CovariateEncoder.fit(obs.assign(dose=[1, "much", 2]), [], ["dose"])


def test_a_constant_number_encodes_as_zero(obs: pd.DataFrame) -> None:
    assert CovariateEncoder.fit(obs.assign(dose=5), [], ["dose"]).features(
        obs.assign(dose=5)
    ).tolist() == [[0], [0], [0]]


def test_survives_a_round_trip_exactly(obs: pd.DataFrame, tmp_path: Path) -> None:
    encoder = CovariateEncoder.fit(
        obs.assign(dose=[0.1, 0.2, 0.7]), ["donor", "plate"], ["dose"], unknown=["plate"]
    )
    encoder.save(tmp_path / "covariates.json")
    loaded = CovariateEncoder.load(tmp_path / "covariates.json")
    assert loaded == encoder
    assert loaded.feature_names == encoder.feature_names


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"categories": 3, "scales": {}}'])
def test_a_broken_file_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a covariate encoder"):
        CovariateEncoder.from_json(text)


def test_no_covariates_give_no_features(obs: pd.DataFrame) -> None:
    encoder = CovariateEncoder.fit(obs, [])
    assert encoder.features(obs).shape == (3, 0)
    assert encoder.codes(obs).shape == (3, 0)


def test_genes_must_be_the_runs_in_order() -> None:
    adata = ad.AnnData(np.zeros((1, 2)), var=pd.DataFrame(index=["g1", "g2"]))
    require_same_genes(adata, ["g1", "g2"])
    with pytest.raises(SchemaError, match="another order"):
        require_same_genes(adata, ["g2", "g1"])
    with pytest.raises(SchemaError, match="missing 'g3'; unexpected 'g2'"):
        require_same_genes(adata, ["g1", "g3"])


def test_a_category_that_is_called_unknown_stands_for_others_only_where_declared(
    obs: pd.DataFrame,
) -> None:
    obs = obs.assign(plate=["p", "unknown", "zz"])
    with pytest.raises(SchemaError, match="the run's file does not have: 'new'"):
        CovariateEncoder.fit(obs.iloc[:2], ["plate"]).codes(obs.assign(plate="new"))
    declared = CovariateEncoder.fit(obs, ["plate"], unknown=["plate"])
    assert declared.categories["plate"] == ("p", "zz", "unknown")
    assert declared.codes(obs.assign(plate=["new", "unknown", "zz"])).ravel().tolist() == [2, 2, 1]
    assert declared.absent(obs) == {}
    assert declared.absent(obs.iloc[:1]) == {"plate": ["zz", "unknown"]}  # nobody learns of either
