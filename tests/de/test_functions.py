"""An offset is a known part of a sample's depth; what a function makes of a covariate is used."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import ConfigError, CountsError
from perturbgen.de import limma_table, norm_factors, voom
from perturbgen.de.design import Design
from tests.de.cases import Case, case
from tests.de.compare import relative


@pytest.fixture
def experiment() -> Case:
    found = case("balanced")
    dose = np.random.default_rng(3).uniform(1, 9, len(found.obs))
    return replace(found, obs=found.obs.assign(dose=dose))


def table(experiment: Case, design: str, **options: object):
    return limma_table(
        experiment.counts,
        experiment.obs,
        design=design,
        group="compound",
        control="vehicle",
        **options,
    )


def test_an_offset_that_the_design_explains_changes_no_residual(experiment: Case) -> None:
    """Doubling the depth of one donor's samples is what the donor's coefficient is for."""
    obs = experiment.obs.assign(known=(experiment.obs["donor"] == "d1") * 1.0)
    moved = replace(experiment, obs=obs)
    plain = Design.from_formula("~donor + compound", obs)
    known = Design.from_formula("~donor + compound + offset(known)", obs)
    np.testing.assert_array_equal(plain.matrix, known.matrix)
    np.testing.assert_array_equal(known.offset, obs["known"])
    before = table(moved, "~0 + {group} + donor")
    after = table(moved, "~0 + {group} + donor + offset(known)")
    assert relative(after.logfc.to_numpy(), before.logfc.to_numpy()) < 0.2
    assert (after.ave_expr < before.ave_expr).all(axis=None)


def test_an_offset_is_a_library_size(experiment: Case) -> None:
    """voom of own sizes, (n + 1) 2^x - 1, is voom with the offset x."""
    found = table(experiment, "~0 + {group} + offset(log2(dose))", normalise="none")
    sizes = (experiment.counts.sum(axis=1) + 1) * experiment.obs["dose"] - 1
    expected = voom(
        experiment.counts,
        Design.from_formula("~0 + compound", experiment.obs),
        norm_factors=sizes / experiment.counts.sum(axis=1),
    )
    average = found.ave_expr.iloc[0].to_numpy()
    np.testing.assert_allclose(average, expected.e.mean().to_numpy(), atol=1e-10)


@pytest.mark.r
@pytest.mark.parametrize(
    "design",
    [
        "~0 + {group} + offset(log2(dose))",
        "~0 + {group} + ns(dose, df = 3)",
        "~0 + {group} + poly(log(dose), 2) + donor",
    ],
)
@pytest.mark.parametrize("normalise", ["tmmwsp", "upperquartile"])
def test_both_backends_read_them(rscript: str, experiment: Case, design: str, normalise: str):
    few = replace(experiment, counts=experiment.counts.iloc[:, -200:])
    ours, theirs = (
        table(few, design, normalise=normalise, backend=backend) for backend in ("native", "r")
    )
    for name in ("logfc", "t", "log10_p"):
        assert relative(getattr(ours, name).to_numpy(), getattr(theirs, name).to_numpy()) < 1e-7


def test_factors_are_refused_where_zeros_leave_none() -> None:
    counts = pd.DataFrame(np.eye(4)[:, [0, 1, 2, 3, 0, 1]] * 9 + 0.0)
    with pytest.raises(CountsError, match="no gene has counts in every sample"):
        norm_factors(counts, "rle")
    with pytest.raises(CountsError, match="too many counts are zero"):
        norm_factors(counts.assign(a=[9.0, 0, 0, 0], b=[9.0, 0, 0, 0]), "upperquartile")
    with pytest.raises(ConfigError, match="did you mean 'tmm'"):
        norm_factors(counts, "tm")
    with pytest.raises(ConfigError, match="one positive number a sample"):
        norm_factors(counts, "tmm", sizes=np.array([1.0, 2, 3, np.nan]))


@pytest.mark.parametrize("method", ["tmm", "tmmwsp", "rle", "upperquartile"])
def test_factors_know_no_order(method: str) -> None:
    counts = case("balanced").counts.iloc[:, 120:]
    shuffled = counts.sample(frac=1, random_state=1)
    if method != "tmmwsp":  # which trims ties by position, edgeR's, too
        shuffled = shuffled.sample(frac=1, axis=1, random_state=2)
    found = norm_factors(shuffled, method).reindex(counts.index)
    np.testing.assert_allclose(found, norm_factors(counts, method), rtol=1e-10)
