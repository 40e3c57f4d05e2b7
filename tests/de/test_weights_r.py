"""Weights, blocks, log values and maps have limma's numbers, on random and on real experiments."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import PerturbgenError
from perturbgen.de import (
    LinearFit,
    array_weights,
    duplicate_correlation,
    fit,
    log_cpm,
    mds,
    norm_factors,
    remove_batch_effect,
    voom,
)
from perturbgen.de.design import Design
from tests.de.cases import NAMES, case
from tests.de.compare import close, relative

pytestmark = pytest.mark.r
HERE = Path(__file__).parent
REAL = ("kang", "macseq")


@dataclass(frozen=True)
class Trial:
    """An experiment, a block for every sample, and where R's numbers are."""

    counts: pd.DataFrame
    design: Design
    block: pd.Series
    folder: Path

    def __getitem__(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.csv"
        return pd.read_csv(path, index_col=0, skipinitialspace=True).to_numpy(dtype=float)

    def voom(self, **options: object):
        return voom(self.counts, self.design, norm_factors=norm_factors(self.counts), **options)

    def fit(self, **options: object) -> LinearFit:
        frame = pd.DataFrame(self.design.matrix, self.counts.index, self.design.columns)
        return fit(self.counts, self.block.to_frame("block"), design=frame, **options)

    def of_logs(self, y: pd.DataFrame, **options: object) -> LinearFit:
        return replace(self, counts=y).fit(transform="none", **options)

    def check_statistics(self, found: LinearFit, name: str, *, trend: bool = False) -> None:
        """Coefficients, residual SD and moderated t of every estimable coefficient."""
        kept, tested = self.design.kept, found.ebayes(trend=trend)
        close(found.coefficients, self[f"coef_{name}"][:, kept], 1e-8)
        assert relative(found.sigma, self[f"sigma_{name}"][:, 0]) < 1e-8
        assert relative(tested.t, self[f"t_{name}"][:, kept]) < 1e-6


def make(name: str, data: Path | None) -> tuple[pd.DataFrame, Design, pd.Series]:
    """Counts, design and blocks of unequal size that the design does not hold."""
    if name == "kang":
        folder = data / "limma_kang"
        obs = pd.read_csv(folder / "kang_pseudobulk_obs.csv", index_col=0)
        counts = pd.read_csv(folder / "kang_pseudobulk_counts.csv", index_col=0).T
        keep = pd.read_csv(folder / "kang_filterByExpr.csv", index_col=0)["keep"]
        counts = counts.loc[obs.index, keep[keep].index[:500]]
        return counts, Design.from_formula("~0 + cluster + group", obs), obs["donor"].astype(str)
    if name == "macseq":
        import anndata

        plate = anndata.read_h5ad(data / "counts" / "macseq_plate.h5ad")
        obs, names = plate.obs, [str(column) for column in plate.obs.columns]
        compound = next(n for n in names if n.lower() in ("compound", "treatment", "treatment_1"))
        chosen = obs[compound].astype(str)
        some = chosen.isin(sorted(chosen.unique())[:12]).to_numpy()
        counts = plate[some].to_df().astype(float)
        counts = counts.loc[:, counts.sum() > 50]
        frame = pd.DataFrame({"compound": chosen[some]}, index=counts.index)
        block = pd.Series([f"b{i % 9}" for i in range(len(frame))], frame.index)
        return counts, Design.from_formula("~0 + compound", frame), block
    found = case(name)
    counts = found.counts.iloc[:, -200:]
    rng = np.random.default_rng(len(name))
    block = pd.Series([f"b{i}" for i in rng.integers(0, 6, len(counts))], counts.index)
    return counts, Design.from_formula(found.formula, found.obs), block


@pytest.fixture(scope="module")
def trials(rscript: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trial]:
    """R's results of all cases, of one process; real data where it lies."""
    place = os.environ.get("PERTURBGEN_DATA")
    data = Path(place) if place and Path(place).exists() else None
    found = {}
    for name in (*NAMES, *(REAL if data else ())):
        folder = tmp_path_factory.mktemp("weights")
        counts, design, block = make(name, data)
        counts.T.to_csv(folder / "counts.csv")
        pd.DataFrame(design.matrix, counts.index, design.columns).to_csv(folder / "design.csv")
        block.to_frame("block").to_csv(folder / "block.csv")
        found[name] = Trial(counts, design, block, folder)
    command = [rscript, str(HERE / "weights.R"), *(str(one.folder) for one in found.values())]
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr

    def get(name: str) -> Trial:
        if name not in found:
            pytest.skip("the real data sets are not here: set PERTURBGEN_DATA")
        return found[name]

    return get


@pytest.fixture(params=[*NAMES, *REAL])
def trial(request: pytest.FixtureRequest, trials: Callable[[str], Trial]) -> Trial:
    return trials(request.param)


def test_correlations(trial: Trial) -> None:
    made = trial.voom()
    for name, weights in (("rho_plain", None), ("rho_voom", made.weights)):
        found = duplicate_correlation(made.e, trial.design, trial.block, weights=weights)
        close(np.arctanh(found.genes.to_numpy()), trial[name][:, 0], 1e-8)
    close(found.consensus, trial["consensus"][0, 0], 1e-10)


def test_voom_and_fit_of_blocks(trial: Trial) -> None:
    first = float(trial["consensus"][0, 0])
    made = trial.voom(block=trial.block, correlation=first)
    assert relative(made.weights.to_numpy().T, trial["weights_blocked"]) < 1e-8
    found = trial.fit(block="block")
    close(found.correlation, trial["consensus2"][0, 0], 1e-9)
    trial.check_statistics(found, "blocked")


def test_sample_weights(trial: Trial) -> None:
    made = trial.voom()
    e, w = made.e, made.weights
    few = slice(0, min(120, e.shape[1]))
    found = {
        "aw_voom": array_weights(e, trial.design, weights=w),
        "aw_reml": array_weights(e, trial.design),
        "aw_reml_voom": array_weights(
            e.iloc[:, few], trial.design, weights=w.iloc[:, few], method="reml"
        ),
        "aw_group": array_weights(e, trial.design, weights=w, groups=trial.block, prior_n=3),
    }
    if np.isnan(trial["aw_reml_voom"]).any():
        del found["aw_reml_voom"]  # R's own diverged
    for name, weights in found.items():
        close(weights.to_numpy(), trial[name][:, 0], 1e-8)


def test_voom_with_quality_weights(trial: Trial) -> None:
    made = trial.voom(quality=True)
    assert relative(made.weights.to_numpy().T, trial["weights_quality"]) < 1e-8
    close(made.sample_weights.to_numpy(), trial["aw_quality"][:, 0], 1e-8)
    found = trial.fit(quality=True)
    close(found.sample_weights, trial["aw_quality"][:, 0], 1e-8)
    trial.check_statistics(found, "quality")


def test_weights_of_ones_own(trial: Trial) -> None:
    samples, genes = trial.counts.shape
    own = np.exp(np.outer(np.cos(np.arange(samples) + 1), np.sin(np.arange(genes) + 1)))
    made = trial.voom(weights=own)
    assert relative(made.weights.to_numpy().T, trial["weights_own"]) < 1e-8
    trial.check_statistics(trial.fit(weights=pd.DataFrame(own, *trial.counts.axes)), "own")


def test_log_values(trial: Trial) -> None:
    y = log_cpm(trial.counts, norm_factors=norm_factors(trial.counts), prior_count=3)
    close(y.to_numpy().T, trial["logcpm"], 1e-10)
    kinds = {"": {}, "_quality": {"quality": True}, "_blocked": {"block": "block"}}
    for name, options in kinds.items():
        for given in (trial.fit(transform="logcpm", **options), trial.of_logs(y, **options)):
            trial.check_statistics(given, f"trend{name}", trend=True)


def test_batches_are_removed(trial: Trial) -> None:
    y = log_cpm(trial.counts, norm_factors=norm_factors(trial.counts), prior_count=3)
    close(remove_batch_effect(y, trial.block).to_numpy().T, trial["nobatch"], 1e-9)
    other = [("x", "y", "x")[i % 3] for i in range(len(y))]
    found = remove_batch_effect(
        y,
        trial.block,
        batch2=other,
        covariates=trial.counts.sum(axis=1).to_numpy() / 1e6,
        design=trial.design.matrix[:, :2],
    )
    close(found.to_numpy().T, trial["nobatch2"], 1e-7)


def test_maps(trial: Trial) -> None:
    factors = norm_factors(trial.counts)
    found = mds(log_cpm(trial.counts, norm_factors=factors))
    close(np.abs(found.coordinates), np.abs(trial["mds"]), 1e-7)
    close(found.share, trial["mds_share"][:2, 0], 1e-9)
    y = log_cpm(trial.counts, norm_factors=factors, prior_count=3)
    found = mds(y, common=True, top=50)
    close(np.abs(found.coordinates), np.abs(trial["mds_common"]), 1e-7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": np.ones((3, 4))}, "samples x genes"),
        ({"weights": -np.ones(36)}, "negative"),
        ({"weights": np.full(36, np.nan)}, "missing or infinite"),
        ({"weights": np.zeros(36)}, "36|zeros"),
        ({"weights": np.ones(36), "quality": True}, "at once"),
        ({"correlation": 0.5}, "without block"),
        ({"block": ["a"] * 35, "correlation": 0.1}, "35 entries for 36"),
        ({"block": ["a", "b", "c"] * 12}, "needs the correlation"),
        ({"block": ["a", "b", "c"] * 12, "correlation": 1.2}, "out of range"),
        ({"block": ["a", "b", "c"] * 12, "correlation": -0.5}, "out of range"),
        ({"sizes": np.zeros(36)}, "one positive number"),
    ],
)
def test_bad_weights_are_refused(options: dict[str, object], words: str) -> None:
    found = case("balanced")
    with pytest.raises(PerturbgenError, match=words):
        voom(found.counts, Design.from_formula("~0 + compound", found.obs), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block": "doner"}, "did you mean 'donor'"),
        ({"sizes": "depth"}, "no column of obs"),
        ({"transform": "vooom"}, "is unknown"),
        ({"transform": "none", "gene_filter": "filterByExpr"}, "filter of counts"),
        ({"block": "donor", "device": "cuda"}, "not fitted on cuda"),
        ({"weights": pd.Series({"s0": 1.0})}, "missing or infinite"),
    ],
)
def test_a_fit_refuses_what_it_cannot_weigh(options: dict[str, object], words: str) -> None:
    found = case("balanced")
    with pytest.raises(PerturbgenError, match=words):
        fit(found.counts, found.obs, design="~0 + compound", **options)


def test_own_library_sizes_are_those_of_voom() -> None:
    found = case("balanced")
    own = found.counts.sum(axis=1) * np.linspace(1, 2, len(found.counts))
    obs = found.obs.assign(depth=own)
    named = fit(found.counts, obs, design="~0 + compound", sizes="depth", normalise="none")
    given = voom(found.counts, named.design, sizes=own)
    close(named.ave_expr, given.e.mean(), 1e-12)
    close(named.logs.weights, given.weights, 1e-8)


def test_blocks_that_tell_nothing_are_refused() -> None:
    found = case("balanced")
    design = Design.from_formula("~0 + compound + donor", found.obs)
    y = log_cpm(found.counts)
    with pytest.raises(PerturbgenError, match="every block holds one sample"):
        duplicate_correlation(y, design, found.obs.index.to_numpy())
    with pytest.raises(PerturbgenError, match="holds the blocks already"):
        duplicate_correlation(y, design, found.obs["donor"])
    with pytest.raises(PerturbgenError, match="two residual degrees of freedom"):
        array_weights(y.iloc[:3], np.eye(3)[:, :2])
