"""Contrasts, F, B, treat and decisions equal limma's on random designs, Kang and MAC-seq."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from perturbgen.de import LinearFit, Moderated, fit
from tests.de.cases import NAMES, Case, case
from tests.de.compare import relative

pytestmark = pytest.mark.r
HERE = Path(__file__).parent
LFC, LEVEL = 0.3, 0.1
# robust: R searches the prior's df to 1e-8 only; see test_parity_r.py
KINDS = {"plain": 1e-8, "trend": 1e-8, "robust": 1e-5, "both": 1e-5}


def asked(experiment: Case, one: str, other: str, control: str) -> dict[str, str]:
    """Contrasts of which the third depends on the first two, and a coefficient of a nuisance."""
    # of donors that plates determine no coefficient is estimable
    last = next((n for n in ("depth", "row", "Row") if n in experiment.obs), "donor")
    donor = sorted(experiment.obs["donor"].unique())[1] if last == "donor" else ""
    levels = {"depth": "depth", "row": "rowr1", "Row": "RowC", "donor": f"donor{donor}"}
    return {
        "one": f"{one} - {control}",
        "other": f"{other} - {control}",
        "both": f"({one} + {other})/2 - {control}",
        "nuisance": levels[last],
    }


def random_case(name: str) -> tuple[Case, dict[str, str]]:
    experiment = case(name)
    return experiment, asked(experiment, "`B-12`", "`a b`", "vehicle")


def real_case(name: str, folder: Path) -> tuple[Case, dict[str, str]]:
    """Kang's cells, or a MAC-seq plate of 83 conditions and rows."""
    if name == "macseq":
        plate = anndata.read_h5ad(folder / "counts" / "macseq_plate.h5ad")
        obs = plate.obs[["combined_id", "Row"]].astype(str)
        experiment = Case(plate.to_df().astype(float), obs, "~0 + combined_id + Row")
        return experiment, asked(experiment, "Staurosporine_10", "Paclitaxel_10", "DMSO_0")
    obs = pd.read_csv(folder / "limma_kang" / "kang_pseudobulk_obs.csv", index_col=0)
    counts = pd.read_csv(folder / "limma_kang" / "kang_pseudobulk_counts.csv", index_col=0).T
    experiment = Case(counts.astype(float), obs, "~0 + sm_cell_type + donor")
    return experiment, asked(
        experiment, "stim_B_cells", "stim_CD14__Monocytes", "(ctrl_B_cells + ctrl_CD4_T_cells)/2"
    )


class Reference:
    """R's results for one case."""

    def __init__(self, folder: Path, experiment: Case, contrasts: dict[str, str]) -> None:
        self.folder, self.case, self.contrasts = folder, experiment, contrasts
        self.fit = self.fitted(contrasts="limma")

    def fitted(self, **options: object) -> LinearFit:
        made = fit(self.case.counts, self.case.obs, design=self.case.formula, **options)
        return made.contrasts(self.contrasts)

    def __getitem__(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.csv"
        return pd.read_csv(path, index_col=0, skipinitialspace=True).to_numpy(float)

    def write(self) -> list[str]:
        """What R reads, and the arguments that it is given."""
        self.case.counts.T.to_csv(self.folder / "counts.csv")
        self.case.obs.to_csv(self.folder / "obs.csv")
        design = self.fit.design
        weights = pd.DataFrame(self.fit.weights.T, list(design.columns), list(self.fit.names))
        weights.to_csv(self.folder / "contrasts.csv")
        return [str(self.folder), self.case.formula]


def run_r(rscript: str, references: dict[str, Reference]) -> dict[str, Reference]:
    arguments = [text for reference in references.values() for text in reference.write()]
    command = [rscript, str(HERE / "contrasts.R"), *arguments]
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return references


@pytest.fixture(scope="module")
def random_references(
    rscript: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Reference]:
    made = {name: Reference(tmp_path_factory.mktemp("r"), *random_case(name)) for name in NAMES}
    return run_r(rscript, made)


@pytest.fixture(scope="module")
def real_references(
    rscript: str, real_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Reference]:
    folders = {name: tmp_path_factory.mktemp("r") for name in REAL}
    made = {name: Reference(f, *real_case(name, real_data)) for name, f in folders.items()}
    return run_r(rscript, made)


REAL = ("kang", "macseq")


@pytest.fixture(
    scope="module", params=[*NAMES, *(pytest.param(name, marks=pytest.mark.data) for name in REAL)]
)
def reference(request: pytest.FixtureRequest) -> Reference:
    name = request.param
    which = "real_references" if name in REAL else "random_references"
    found: Reference = request.getfixturevalue(which)[name]
    return found


def moderated(reference: Reference, kind: str) -> Moderated:
    return reference.fit.ebayes(robust=kind in ("robust", "both"), trend=kind in ("trend", "both"))


@pytest.mark.parametrize(("kind", "tolerance"), KINDS.items())
def test_t_f_b_and_intervals(reference: Reference, kind: str, tolerance: float) -> None:
    found = moderated(reference, kind)
    assert relative(found.t, reference[f"t_{kind}"]) < tolerance
    assert relative(np.log(found.p), np.log(reference[f"p_{kind}"])) < tolerance
    assert relative(found.b, reference[f"b_{kind}"]) < tolerance
    f = found.f_test()
    assert (f["df1"] == 3).all()
    assert relative(f["F"], reference[f"f_{kind}"][:, 0]) < tolerance
    assert relative(f["log10_p"] * np.log(10), np.log(reference[f"f_{kind}"][:, 1])) < tolerance
    table = found.top_table("one", number=None, sort="none", confint=0.9)
    assert relative(table[["CI.L", "CI.R"]], reference[f"ci_{kind}"]) < tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_decisions(reference: Reference, kind: str) -> None:
    found = moderated(reference, kind)
    some = 0
    for method in ("separate", "global", "nestedF"):
        expected = reference[f"{method}_{kind}"]
        some += np.abs(expected).sum()
        np.testing.assert_array_equal(found.decide(method, level=LEVEL), expected, method)
    expected = reference[f"holm_{kind}"]
    np.testing.assert_array_equal(found.decide("nestedF", adjust="holm", level=LEVEL), expected)
    assert some


@pytest.mark.parametrize(("kind", "tolerance"), KINDS.items())
def test_treat(reference: Reference, kind: str, tolerance: float) -> None:
    found = reference.fit.treat(
        LFC, robust=kind in ("robust", "both"), trend=kind in ("trend", "both")
    )
    # most are exactly zero: no relative difference
    np.testing.assert_allclose(found.t, reference[f"treat_t_{kind}"], rtol=tolerance, atol=1e-8)
    assert relative(np.log(found.p), np.log(reference[f"treat_p_{kind}"])) < tolerance
    np.testing.assert_array_equal(found.decide(level=LEVEL), reference[f"treat_separate_{kind}"])


def test_exact_contrasts_and_their_f(reference: Reference) -> None:
    found = reference.fitted().ebayes()
    names = ["one", "other", "nuisance"]
    expected = reference["exact"][::-1]  # from the last gene on, a thousand at most
    assert relative(found.t[names][-len(expected) :], expected[:, :3]) < 1e-8
    assert relative(found.f_test(names)["F"][-len(expected) :], expected[:, 3]) < 1e-8
    # a contrast that the others determine changes nothing
    assert relative(found.f_test()["F"], found.f_test(names)["F"]) < 1e-8
