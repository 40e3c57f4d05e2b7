"""Every number equals R's on random designs, step by step and from end to end."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import CountsError
from perturbgen.de import filter_by_expr, limma_table, norm_factors, tmm_factors, voom
from perturbgen.de.design import Design
from perturbgen.de.native import FitMethod, fit_native
from tests.de.cases import NAMES, Case, case
from tests.de.compare import close, relative

pytestmark = pytest.mark.r
HERE = Path(__file__).parent


class Reference:
    """R's results for one case, read as arrays."""

    def __init__(self, folder: Path, experiment: Case) -> None:
        self.folder, self.case = folder, experiment

    def __getitem__(self, name: str) -> np.ndarray:
        return pd.read_csv(
            self.folder / f"{name}.csv", index_col=0, skipinitialspace=True
        ).to_numpy()

    @property
    def columns(self) -> list[str]:
        return pd.read_csv(self.folder / "design.csv", index_col=0).columns.str.strip().tolist()


@pytest.fixture(scope="module")
def references(rscript: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reference]:
    """R's results for every case, of one process: starting R with limma takes a second."""
    found, arguments = {}, ["compound", "vehicle"]
    for name in NAMES:
        experiment, folder = case(name), tmp_path_factory.mktemp("r")
        experiment.counts.T.to_csv(folder / "counts.csv")
        experiment.obs.to_csv(folder / "obs.csv")
        arguments += [str(folder), experiment.formula]
        found[name] = Reference(folder, experiment)
    # R sorts levels by its locale; ours are sorted by code point, as R does in the C locale
    environment = {**os.environ, "LC_ALL": "C"}
    command = [rscript, str(HERE / "reference.R"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return found


@pytest.fixture(scope="module", params=NAMES)
def reference(request: pytest.FixtureRequest, references: dict[str, Reference]) -> Reference:
    return references[request.param]


def test_design_is_model_matrix(reference: Reference) -> None:
    obs = reference.case.obs
    design = Design.from_formula(reference.case.template, obs, obs["compound"])
    np.testing.assert_array_equal(design.matrix, reference["design"])
    aliased = (reference.folder / "aliased.csv").read_text().splitlines()[1:]
    assert design.aliased == [line.split(",")[1].strip() for line in aliased]


def test_normalisation_and_filter(reference: Reference) -> None:
    close(tmm_factors(reference.case.counts).to_numpy(), reference["tmm"][:, 0], 1e-10)
    keep = filter_by_expr(reference.case.counts, design=reference["design"]).to_numpy()
    assert (keep == (np.char.strip(reference["filter"][:, 0].astype(str)) == "True")).all()
    assert 0 < keep.sum() < len(keep)


@pytest.mark.parametrize("method", ["tmmwsp", "rle", "upperquartile"])
def test_other_factors(reference: Reference, method: str) -> None:
    counts, expected = reference.case.counts, reference[method][:, 0]
    if np.isnan(expected.astype(float)).any():
        with pytest.raises(CountsError):
            norm_factors(counts, method)
        return
    close(norm_factors(counts, method).to_numpy(), expected, 1e-10)


@pytest.mark.parametrize("method", ["tmm", "tmmwsp"])
def test_factors_of_own_library_sizes(reference: Reference, method: str) -> None:
    counts = reference.case.counts
    own = np.linspace(1e4, 3e4, len(counts))
    close(
        norm_factors(counts, method, sizes=own).to_numpy(), reference[f"{method}_own"][:, 0], 1e-10
    )


def test_filter_by_group_and_its_settings(reference: Reference) -> None:
    counts, group = reference.case.counts, reference.case.obs["compound"]
    settings = {"min_count": 3, "min_total_count": 40, "large_n": 3, "min_prop": 0.5}
    found = filter_by_expr(counts, group=group, **settings).to_numpy()
    assert (found == truth(reference["filter_group"])).all()
    own = np.linspace(1e4, 3e4, len(counts))
    found = filter_by_expr(counts, group=group, sizes=own).to_numpy()
    assert (found == truth(reference["filter_own"])).all()


def truth(values: np.ndarray) -> np.ndarray:
    return np.char.strip(values[:, 0].astype(str)) == "True"


def test_voom(reference: Reference) -> None:
    counts = reference.case.counts
    result = voom(counts, reference["design"], norm_factors=tmm_factors(counts))
    close(result.e.to_numpy().T, reference["e"], 1e-10)
    assert relative(result.weights.to_numpy().T, reference["weights"]) < 1e-8


def test_the_adaptive_span_counts_genes_without_counts(reference: Reference) -> None:
    counts = reference.case.counts
    assert not counts.any().all()
    factors = tmm_factors(counts)
    result = voom(counts, reference["design"], norm_factors=factors, span="adaptive")
    assert relative(result.weights.to_numpy().T, reference["weights_adaptive"]) < 1e-8


def test_fit(reference: Reference) -> None:
    obs = reference.case.obs
    design = Design.from_formula(reference.case.template, obs, obs["compound"])
    levels = [level for level in design.levels if level != "vehicle"]
    weights = np.array([design.contrast(level, "vehicle") for level in levels])
    result = fit_native(
        reference.case.counts.to_numpy(), design, weights, FitMethod(contrasts="limma")
    )
    assert relative(result.sigma, reference["sigma"][:, 0]) < 1e-9
    assert relative(result.ave_expr, reference["amean"][:, 0]) < 1e-9
    close(result.effects.T, reference["logfc"], 1e-9)


# 1e-5: R searches a robust prior's u = df_0 / (1 + df_0) to 1e-8 only, a relative error of
# 1e-8 / (1 - u) in df_0 (``uniroot`` in limma's fitFDistRobustly); ours to 1e-15.
@pytest.mark.parametrize(
    ("kind", "tolerance"), [("plain", 1e-7), ("trend", 1e-7), ("robust", 1e-5), ("both", 1e-5)]
)
def test_moderated_statistics(reference: Reference, kind: str, tolerance: float) -> None:
    options = {"robust": kind in ("robust", "both"), "trend": kind in ("trend", "both")}
    table = run(reference.case, contrasts="limma", **options)
    assert relative(table.df.to_numpy()[0], reference[f"df_{kind}"][:, 0]) < tolerance
    assert relative(table.t.to_numpy().T, reference[f"t_{kind}"]) < tolerance
    assert relative(table.log10_p.to_numpy().T, reference[f"log10p_{kind}"]) < tolerance


def test_exact_contrasts_are_coefficients_of_a_releveled_design(reference: Reference) -> None:
    table = run(reference.case, contrasts="exact")
    assert relative(table.t.to_numpy().T, reference["t_exact"]) < 1e-7
    assert relative(table.log10_p.to_numpy().T, reference["log10p_exact"]) < 1e-7


@pytest.mark.parametrize(("contrasts", "span"), [("exact", 0.5), ("limma", "adaptive")])
def test_backends_agree(reference: Reference, contrasts: str, span: float | str) -> None:
    few = replace(reference.case, counts=reference.case.counts.iloc[:, -300:])
    native, through_r = (
        run(few, contrasts=contrasts, span=span, backend=backend) for backend in ("native", "r")
    )
    for name in ("logfc", "ave_expr", "t", "se", "df", "log10_p"):
        assert (
            relative(getattr(native, name).to_numpy(), getattr(through_r, name).to_numpy()) < 1e-7
        ), name


def run(experiment: Case, **options: object):
    template = experiment.template
    return limma_table(
        experiment.counts,
        experiment.obs,
        design=template,
        group="compound",
        control="vehicle",
        **options,
    )
