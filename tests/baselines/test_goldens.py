"""Values worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from perturbgen.baselines import blend_weights, make
from perturbgen.baselines.base import TrainTable
from perturbgen.baselines.features import Components, backward, forward
from perturbgen.baselines.linear import _squares_between, _variance_components, bilinear_ridge
from perturbgen.baselines.rows import _median
from perturbgen.core.errors import SchemaError
from perturbgen.core.tables import CONDITION as KEY


def asked(*pairs: tuple[str, str]) -> pd.MultiIndex:
    return pd.MultiIndex.from_tuples(pairs, names=KEY)


RNG = np.random.default_rng


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("zeros", [0, 0]),
        ("gene_mean", [26 / 6, 5 / 6]),
        ("compound_mean", [4.5, 2]),
        ("mean_across_compounds", [4.5, 2]),
        ("compound_median", [4.5, 2]),
        ("cell_type_mean", [9, -1]),
        ("mean_across_celltypes", [9, -1]),
    ],
)
def test_constants(small: pd.DataFrame, name: str, expected: list[float]) -> None:
    found = make(name).fit(small, rng=RNG(0)).predict(asked(("C", "y")))
    assert found.index.equals(asked(("C", "y")))
    assert found.columns.tolist() == ["g", "h"]
    np.testing.assert_allclose(found.to_numpy()[0], expected, atol=1e-12)


def test_the_median_is_not_the_mean(small: pd.DataFrame) -> None:
    found = make("compound_median").fit(small, rng=RNG(0)).predict(asked(("C", "x"), ("B", "z")))
    # of 1, 2, 9 and of 2, 2, -1; of z alone
    np.testing.assert_array_equal(found.to_numpy(), [[2, 2], [5, -2]])
    np.testing.assert_array_equal(_median(np.array([[4.0], [1.0], [2.0], [9.0]])), [3.0])


def test_additive_solves_the_unbalanced_normal_equations(small: pd.DataFrame) -> None:
    # Gene g of A and B over x, y: the interaction is left over, y - x = (2 + 4) / 2 = 3.
    # z - A comes from (A, z) alone. A: x + y = 4, B: x + y = 8, so B - A = 2; (C, x) fixes C.
    # Then (B, z) = 5 + 2, (C, y) = 9 + 3, (C, z) = 9 + (5 - a_x).
    found = (
        make("additive").fit(small, rng=RNG(0)).predict(asked(("B", "z"), ("C", "y"), ("C", "z")))
    )
    # The fit of (A, x) is 4/2 - 3/2 = .5, so z - x = 4.5.
    np.testing.assert_allclose(found["g"], [7, 12, 13.5], atol=1e-10)


def test_shrunken_additive_is_the_blup_of_its_variances(small: pd.DataFrame) -> None:
    model = make("shrunken_additive").fit(small, rng=RNG(0))
    cell, compound, noise = model.variances  # type: ignore[attr-defined]
    cells, compounds = (small.index.get_level_values(i).to_numpy() for i in (0, 1))
    kernel = cell * (cells[:, None] == cells) + compound * (compounds[:, None] == compounds)
    covariance = kernel + noise * np.eye(6)
    inverse = np.linalg.inv(covariance)
    mean = inverse.sum(axis=0) @ small.to_numpy() / inverse.sum()
    k = cell * (cells == "B") + compound * (compounds == "z")
    expected = mean + k @ inverse @ (small.to_numpy() - mean)
    np.testing.assert_allclose(model.predict(asked(("B", "z"))).to_numpy()[0], expected, rtol=1e-8)


def test_variance_components_are_found_again() -> None:
    rng = RNG(1)
    cells, compounds = 12, 40
    index = pd.MultiIndex.from_product(
        [[f"t{i}" for i in range(cells)], [f"c{i}" for i in range(compounds)]], names=KEY
    )
    genes = 400
    cell, compound = (
        rng.normal(0, 1.0, (cells, 1, genes)),
        rng.normal(0, 1.5, (1, compounds, genes)),
    )
    values = (cell + compound + rng.normal(0, 0.7, (cells, compounds, genes))).reshape(-1, genes)
    found = _variance_components(TrainTable.of(pd.DataFrame(values, index)))
    np.testing.assert_allclose(found, [1.0, 2.25, 0.49], rtol=0.15)


def test_nearest_replicate_takes_the_row_of_the_most_similar_cell_type() -> None:
    base = RNG(2).normal(size=(3, 6))
    rows = {("A", f"c{i}"): base[i] for i in range(2)} | {
        ("B", f"c{i}"): base[i] + 0.1 * base[2] for i in range(2)
    }
    rows |= {("D", f"c{i}"): -base[i] for i in range(2)} | {
        ("B", "new"): base[2],
        ("D", "new"): base[0],
    }
    train = pd.DataFrame(list(rows.values()), pd.MultiIndex.from_tuples(rows, names=KEY))
    found = make("nearest_replicate").fit(train, rng=RNG(0)).predict(asked(("A", "new")))
    np.testing.assert_array_equal(found.to_numpy()[0], base[2])


def test_ground_truth_is_joined_by_label(small: pd.DataFrame) -> None:
    truth = small.iloc[::-1, ::-1]
    found = (
        make("ground_truth", truth=truth)
        .fit(small, rng=RNG(0))
        .predict(asked(("B", "y"), ("A", "x")))
    )
    np.testing.assert_array_equal(found.to_numpy(), [[6, 4], [1, 2]])


def test_t_values() -> None:
    np.testing.assert_allclose(
        forward(np.array([-np.log10(0.05), 0, np.log10(0.01)]), "t"),
        [1.959964, 0, -2.575829],
        atol=1e-6,
    )
    y = np.array([-300.0, -2.5, -1e-3, 0, 0.3, 17, 308])
    np.testing.assert_allclose(backward(forward(y, "t"), "t"), y, rtol=1e-9, atol=1e-12)
    assert np.isfinite(forward(np.array([5000.0]), "t")).all()


def test_components_reproduce_low_rank_values() -> None:
    rng = RNG(3)
    values = 2 + rng.normal(size=(9, 2)) @ rng.normal(size=(2, 20))
    found = Components.fit(values, 5)
    assert len(found.loadings) == 2
    np.testing.assert_allclose(found.loadings @ found.loadings.T, np.eye(2), atol=1e-10)
    np.testing.assert_allclose(found.values(found.scores(values)), values, atol=1e-10)


def test_bilinear_ridge_is_the_least_squares_map_and_shrinks() -> None:
    rng = RNG(4)
    left, right, true = rng.normal(size=(30, 3)), rng.normal(size=(2, 50)), rng.normal(size=(3, 2))
    np.testing.assert_allclose(
        bilinear_ridge(left @ true @ right, left, right, ridge=0), true, atol=1e-10
    )
    # One row p = 2, one gene-embedding g = (3): W = 2 · y · 3 / ((4 + λ) · 9) with y = 12 and λ =
    # 4: 1.
    one = bilinear_ridge(np.array([[12.0]]), np.array([[2.0]]), np.array([[3.0]]), ridge=4)
    np.testing.assert_allclose(one, [[1.0]])


def test_distances() -> None:
    np.testing.assert_allclose(
        _squares_between(np.array([[0.0, 0]]), np.array([[3.0, 4], [0, 0]])), [[25, 0]]
    )


def test_blend_weights_are_non_negative_least_squares(small: pd.DataFrame) -> None:
    rng = RNG(0)
    good = small * 2
    noise = pd.DataFrame(rng.normal(size=small.shape), small.index, small.columns)
    found = blend_weights(small, {"double": good.iloc[::-1], "opposite": -small, "noise": noise})
    assert found["double"] == pytest.approx(0.5, abs=1e-9)
    assert found["opposite"] == pytest.approx(0, abs=1e-9)
    assert found["noise"] == pytest.approx(0, abs=1e-9)


def test_the_interval_of_a_mean_is_students(small: pd.DataFrame) -> None:
    lower, upper = (
        make("gene_mean").fit(small, rng=RNG(0)).predict_interval(asked(("A", "x")), level=0.8)
    )
    values = small["g"].to_numpy()
    half = student.ppf(0.9, 5) * values.std(ddof=1) * np.sqrt(1 + 1 / 6)
    np.testing.assert_allclose(
        [lower["g"].iloc[0], upper["g"].iloc[0]], [values.mean() - half, values.mean() + half]
    )


def test_kernel_ridge_on_two_rows() -> None:
    """Two training rows, far apart for the width: each keeps 1 / (1 + λ) of its deviation."""
    rows = pd.DataFrame(
        [[0.0, 0], [0, 0], [4, 2], [4, 2]],
        asked(("A", "x"), ("B", "x"), ("A", "y"), ("B", "y")),
        ["g", "h"],
    )
    model = make(
        "kernel_ridge", transform="none", width=0.01, ridge=1.0, clip=False, folds=2, encoded=1
    )
    found = model.fit(rows, rng=RNG(0)).predict(rows.index)
    assert norm.cdf(0) == 0.5
    # Rows of one compound have equal compound encodings; the kernel of a pair is 1 where the cell
    # encodings agree too.
    assert found.loc[("A", "y"), "g"] > 2.9
    assert found.loc[("A", "x"), "g"] < 1.1


def test_what_the_truth_lacks_is_told(small: pd.DataFrame) -> None:
    with pytest.raises(SchemaError, match=r"lacks 1 conditions: 'C \| y'"):
        make("ground_truth", truth=small).fit(small, rng=RNG(0)).predict(asked(("C", "y")))
    with pytest.raises(SchemaError, match="lacks 1 genes of the training table: 'h'"):
        make("ground_truth", truth=small[["g"]]).fit(small, rng=RNG(0))
