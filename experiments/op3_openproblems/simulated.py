"""A simulated experiment in the files of the Open Problems release, from the competition's.

T cells are one type, B and myeloid rows of about a third of the withheld compounds are public and
the rest private, and the tables are of the benchmark's own DE (genes expressed in every cell type,
values within +-4). Of limma's columns B, the log-odds, is missing.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from perturbgen.core.files import atomic_path, require_writable
from perturbgen.core.tables import VEHICLE
from perturbgen.simulation import CONDITION_KEY, simulate

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.de import DETable

_OBS: Final = (
    "dose_uM",
    "timepoint_hr",
    "well",
    "row",
    "col",
    "plate_name",
    "cell_id",
    "cell_type",
    "donor_id",
    "library_id",
    "sm_lincs_id",
    "SMILES",
    "sm_name",
    "control",
)
# What every file of the benchmark says of its data set.
_ABOUT: Final = {
    "dataset_id": "neurips-2023-data",
    "dataset_name": "NeurIPS2023 Perturbation Prediction (simulated)",
    "dataset_url": "",
    "dataset_reference": "",
    "dataset_summary": "Simulated; no cell was ever measured.",
    # The name that it had at first. It stays: runs name their counts by a hash of these files.
    "dataset_description": "Made by perturbgen.simulation.openproblems.",
    "dataset_organism": "homo_sapiens",
}
_DE_OBS: Final = [*CONDITION_KEY, "sm_lincs_id", "SMILES", "split", "control"]
_SIGNIFICANT: Final = 0.05
# Share of the withheld compounds whose rows are released: 49 of 128 in the real one.
_PUBLIC: Final = 0.38


def simulate_openproblems(preset: str, *, seed: int, out: str | Path) -> Path:
    """Simulate an experiment; write ``sc_counts``, ``de_train``, ``de_test`` (h5ad), ``id_map``."""
    require_writable(Path(out))
    with TemporaryDirectory() as made:
        folder = simulate(preset, seed=seed, out=Path(made) / "kaggle")
        return write_openproblems(folder, out, seed=seed)


def write_openproblems(folder: str | Path, out: str | Path, *, seed: int) -> Path:
    """Write a simulated folder of the competition's files anew as the benchmark's."""
    from perturbgen.data import pseudobulk
    from perturbgen.de import flavour_table

    cells = _all_cells(Path(folder))
    cells.obs["split"] = _splits(cells.obs, rng=np.random.default_rng([seed, 7]))
    bulk = pseudobulk(cells, by=["plate", "well", "cell_type"])
    table = flavour_table(bulk, flavour="op3")
    known = cells.obs.drop_duplicates(CONDITION_KEY).set_index(CONDITION_KEY)
    with atomic_path(out) as part:
        part.mkdir()
        # the benchmark gives no cell of the rows that it scores
        _write_cells(cells[cells.obs["split"] != "private_test"], part / "sc_counts.h5ad")
        for name, private in (("de_train", False), ("de_test", True)):
            _de_table(table, known, private=private).write_h5ad(part / f"{name}.h5ad")
        _rows_to_predict(table, known).to_csv(part / "id_map.csv", index=False)
    return Path(out)


def _all_cells(folder: Path) -> AnnData:
    """Released and withheld cells, their T cells of one type."""
    import anndata

    from perturbgen.core.h5ad import open_h5ad
    from perturbgen.data import read_competition

    released, withheld = read_competition(folder), open_h5ad(folder / "truth_cells.h5ad")
    cells = anndata.concat([released, withheld], uns_merge="first")
    kinds = cells.obs["cell_type"].astype(str)
    # the benchmark merged them, since their annotation is unreliable after treatment
    cells.obs["cell_type"] = kinds.mask(kinds.str.startswith("T "), "T cells")
    rows, withheld_rows = (
        pd.MultiIndex.from_frame(table.obs[CONDITION_KEY].astype(str))
        for table in (cells, withheld)
    )
    cells.obs["withheld"] = rows.isin(withheld_rows.unique())
    return cells


def _splits(obs: pd.DataFrame, *, rng: np.random.Generator) -> np.ndarray:
    """control, train, public_test or private_test for every cell; each compound is of one test."""
    # sorted: the draw must not depend on the order of the cells
    compounds = np.sort(obs.loc[obs["withheld"], "sm_name"].astype(str).unique())
    public = rng.permutation(compounds)[: round(_PUBLIC * len(compounds))]
    shown = np.where(obs["sm_name"].isin(public), "public_test", "private_test")
    return np.where(
        obs["control"].astype(bool), "control", np.where(obs["withheld"], shown, "train")
    )


def _write_cells(cells: AnnData, path: Path) -> None:
    """Counts in a layer, as the release has them, with its columns only."""
    from anndata import AnnData

    obs = cells.obs[[*_OBS, "split"]].copy()
    layers = {"counts": cells.X}
    AnnData(obs=obs, var=pd.DataFrame(index=cells.var_names), layers=layers, uns=_ABOUT).write_h5ad(
        path
    )


def _de_table(table: DETable, known: pd.DataFrame, *, private: bool) -> AnnData:
    """The rows of ``de_train`` or ``de_test``, sorted, for the genes that were tested."""
    from anndata import AnnData

    chosen = table.select(_rows_of(table, known, private=private))
    genes = chosen.genes[table.t.notna().all()]
    obs = known.loc[chosen.t.index].reset_index()[_DE_OBS].astype({"control": bool})
    obs.index = pd.Index([str(i) for i in range(len(obs))])
    # an adjusted p may be 0 as a number, which has no logarithm
    sign, adjusted = np.sign(chosen.logfc), chosen.adj_p.clip(np.finfo(float).tiny, 1)
    layers = {
        "logFC": chosen.logfc,
        "AveExpr": chosen.ave_expr,
        "t": chosen.t,
        "P.Value": chosen.p,
        "adj.P.Value": chosen.adj_p,
        "is_de": chosen.p < _SIGNIFICANT,
        "is_de_adj": chosen.adj_p < _SIGNIFICANT,
        "sign_log10_pval": -sign * chosen.log10_p,
        "sign_log10_adj_pval": -sign * np.log10(adjusted),
        "clipped_sign_log10_pval": chosen.signed_log10_p,
    }
    arrays = {
        name: np.asarray(frame[genes] if isinstance(frame, pd.DataFrame) else frame)
        for name, frame in layers.items()
    }
    return AnnData(obs=obs, var=pd.DataFrame(index=genes), layers=arrays, uns=_ABOUT)


def _rows_of(table: DETable, known: pd.DataFrame, *, private: bool) -> list[tuple[str, str]]:
    """The conditions of a table that have an answer, by cell type and compound."""
    answered = table.t.index[table.t.notna().any(axis=1)]
    rows = [
        row
        for row in answered
        if row[1] != VEHICLE and (known.loc[row, "split"] == "private_test") == private
    ]
    return sorted(rows)


def _rows_to_predict(table: DETable, known: pd.DataFrame) -> pd.DataFrame:
    """The rows to predict, columns in the benchmark's order."""
    rows = _rows_of(table, known, private=True)
    return pd.DataFrame(
        {"id": range(len(rows)), "sm_name": [r[1] for r in rows], "cell_type": [r[0] for r in rows]}
    )
