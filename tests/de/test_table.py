"""The table: adjustment, signs, clipping, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control

from perturbgen.core.errors import InputError, SchemaError
from perturbgen.de import DETable, limma_table
from perturbgen.de.limma import _adjust_bh
from tests.de.cases import case


@pytest.fixture(scope="module")
def table() -> DETable:
    experiment = case("balanced")
    obs = experiment.obs.assign(
        cell_type=np.where(experiment.obs["donor"] == "d0", "T cells", "B cells")
    )
    return limma_table(
        experiment.counts,
        obs,
        design="~0 + {group}",
        group="compound",
        control="vehicle",
        by="cell_type",
    )


def test_benjamini_hochberg() -> None:
    p = np.random.default_rng(0).uniform(0, 1, 400) ** 3
    np.testing.assert_allclose(_adjust_bh(np.log(p)), false_discovery_control(p))
    some = np.array([0.01, np.nan, 0.04, 0.03])
    np.testing.assert_allclose(_adjust_bh(np.log(some)), [0.03, np.nan, 0.04, 0.04])


def test_adjustment_within_contrasts_or_over_all_of_them(table: DETable) -> None:
    row = table.p.iloc[0].to_numpy()
    np.testing.assert_allclose(table.adj_p.iloc[0], false_discovery_control(row))
    experiment = case("balanced")
    joint = limma_table(
        experiment.counts,
        experiment.obs,
        design="~0 + {group}",
        group="compound",
        control="vehicle",
        adjust="joint",
    )
    np.testing.assert_allclose(
        joint.adj_p.to_numpy().ravel(), false_discovery_control(joint.p.to_numpy().ravel())
    )


def test_signs(table: DETable) -> None:
    signed = table.signed_log10_p
    assert (np.sign(signed) == np.sign(table.logfc)).all(axis=None)
    np.testing.assert_allclose(10.0 ** -signed.abs(), table.p)
    np.testing.assert_allclose(table.t * table.se, table.logfc)


def test_p_below_the_smallest_number() -> None:
    """A huge, steady effect: log10 p is finite, p is 0, and the organisers stored 15.65."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"compound": ["a"] * 200 + ["vehicle"] * 200}, index=[f"s{i}" for i in range(400)]
    )
    counts = rng.poisson(50, (400, 100)).astype(float)
    counts[:200, 0] += 60_000
    counts = pd.DataFrame(counts, obs.index, [f"g{i}" for i in range(100)])
    settings = {
        "design": "~0 + {group}",
        "group": "compound",
        "control": "vehicle",
        "normalise": "none",
    }
    exact, eps = (limma_table(counts, obs, zero_p=zero, **settings) for zero in (None, "eps"))
    assert -5000 < exact.log10_p.loc["a", "g0"] < -324
    assert exact.p.loc["a", "g0"] == 0
    assert eps.signed_log10_p.loc["a", "g0"] == pytest.approx(15.6536, abs=1e-4)
    others = exact.genes[(exact.p != 0).to_numpy()[0]]
    pd.testing.assert_frame_equal(eps.log10_p[others], exact.log10_p[others])


@pytest.mark.parametrize("suffix", [".parquet", ".h5ad"])
def test_files_give_the_table_back(table: DETable, suffix: str, tmp_path: Path) -> None:
    path = table.write(tmp_path / f"de{suffix}")
    again = DETable.read(path)
    for name in DETable.STATISTICS:
        pd.testing.assert_frame_equal(getattr(again, name), getattr(table, name), check_names=False)
    assert again.conditions.index.names == ["cell_type", "compound"]
    pd.testing.assert_frame_equal(again.conditions, table.conditions)
    assert again.info == table.info
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_other_files_are_refused(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1.0]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(InputError, match="is no DE table"):
        DETable.read(tmp_path / "other.parquet")
    with pytest.raises(InputError, match="no DE table at"):
        DETable.read(tmp_path / "absent.parquet")


def test_selection_is_by_label(table: DETable) -> None:
    wanted = [("T cells", "Abc"), ("B cells", "10")]
    assert list(table.select(wanted).t.index) == wanted
    with pytest.raises(SchemaError, match="no condition"):
        table.select([("T cells", "aspirin")])
