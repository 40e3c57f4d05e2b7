"""The Open Problems release of the competition: cells and DE as h5ad, and its curated filter."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError, shorten, suggest
from perturbgen.core.files import require_file
from perturbgen.core.h5ad import open_h5ad, open_hdf5
from perturbgen.core.tables import VEHICLE, conditions_of, reading, require_columns
from perturbgen.data.counts import to_counts
from perturbgen.data.h5ad import take_layer
from perturbgen.data.schema import KAGGLE_COLUMNS, with_our_columns

if TYPE_CHECKING:
    from anndata import AnnData

_logger = logging.getLogger(__name__)

DE_LAYER: Final = "clipped_sign_log10_pval"


@dataclass(frozen=True)
class _Removal:
    """Cells of a compound to drop: all of them, or those of one donor or one cell type."""

    compound: str
    donor: str | None = None
    cell_type: str | None = None

    def __str__(self) -> str:
        return " / ".join(filter(None, (self.compound, self.donor, self.cell_type)))

    def matches(self, obs: pd.DataFrame) -> np.ndarray:
        """Which cells the rule drops (cells,)."""
        chosen = (obs["compound"] == self.compound).to_numpy()
        for column, value in (("donor", self.donor), ("cell_type", self.cell_type)):
            if value is not None:
                require_columns(obs.columns, [column], f"obs, for the rule {self}")
                chosen &= (obs[column] == value).to_numpy()
        return chosen


# Conditions that the benchmark's authors removed by hand: cell types missing or their shares
# contradictory between donors (toxic compounds).
_CURATION: Final = (
    _Removal("Alvocidib"),
    _Removal("CGP 60474"),
    _Removal("UNII-BXU45ZH6LI"),
    _Removal("BMS-387032", donor="Donor 2"),
    _Removal("BMS-387032", cell_type="B cells"),
    _Removal("BMS-387032", cell_type="Myeloid cells"),
    _Removal("Canertinib", cell_type="Myeloid cells"),
    _Removal("Foretinib", cell_type="Myeloid cells"),
    _Removal("PF-04691502", cell_type="Myeloid cells"),
    _Removal("Proscillaridin A;Proscillaridin-A", cell_type="Myeloid cells"),
    _Removal("Ganetespib (STA-9090)", donor="Donor 2"),
    _Removal("IN1451", donor="Donor 2"),
    _Removal("Navitoclax", donor="Donor 3"),
    _Removal("R428", cell_type="NK cells"),
)


def read_openproblems(
    path: str | Path, *, layer: str | None = None, curated: bool = False, vehicle: str = VEHICLE
) -> AnnData:
    """The benchmark's cells (``sc_counts*.h5ad``): CSR int32, our names beside the originals.

    Without ``layer`` the counts come from where the benchmark takes them: ``.raw`` if the file has
    it, else the layer ``counts``, else X. ``curated=True`` drops the conditions that the
    benchmark's authors removed; how many cells each rule took is in ``uns["curation"]``. The file's
    other columns (``split`` among them) are kept; what it lacks stays absent, but for ``control``,
    which is then ``split == "control"`` as in the benchmark.
    """
    adata = open_h5ad(path)
    require_columns(adata.obs.columns, ("cell_type", "sm_name"), path)
    if layer is None and adata.raw is not None:
        layer = "raw"
    elif layer is None and "counts" in adata.layers:
        layer = "counts"
    adata = take_layer(adata, layer, path)
    where = f"layer {layer!r} of {path}" if layer else f"X of {path}"
    adata.X = to_counts(adata.X, adata.obs_names, adata.var_names, where)
    renamed = {ours: theirs for theirs, ours in KAGGLE_COLUMNS.items() if ours != theirs}
    present = {ours: theirs for ours, theirs in renamed.items() if theirs in adata.obs}
    adata.obs = with_our_columns(adata.obs, present)
    if "control" not in adata.obs and "split" in adata.obs:
        adata.obs["control"] = (adata.obs["split"] == "control").to_numpy()
    adata.uns["vehicle"] = vehicle
    return _curate(adata) if curated else adata


def is_openproblems(path: str | Path) -> bool:
    """Whether an h5ad file has the benchmark's obs columns, from its header alone."""
    path = require_file(path, "h5ad file")
    with reading(path, "h5ad"), open_hdf5(path) as file:
        return {"sm_name", "cell_type"} <= set(file["obs"]) and "compound" not in file["obs"]


def _curate(adata: AnnData, rules: tuple[_Removal, ...] = _CURATION) -> AnnData:
    """Without the cells that ``rules`` drop; ``uns["curation"]`` counts the cells of each."""
    matches = [rule.matches(adata.obs) for rule in rules]
    dropped = np.logical_or.reduce(matches)
    counted = [(str(rule), int(found.sum())) for rule, found in zip(rules, matches, strict=True)]
    report = pd.DataFrame(counted, columns=["rule", "cells"])
    _logger.info("curation drops %s of %s cells", f"{int(dropped.sum()):,}", f"{adata.n_obs:,}")
    unused = report.loc[report["cells"] == 0, "rule"]
    if len(unused):
        _logger.warning("%d curation rules match no cell: %s", len(unused), shorten(unused))
    kept = adata[~dropped].copy()
    kept.uns["curation"] = report
    return kept


def read_openproblems_de(path: str | Path, *, layer: str = DE_LAYER) -> pd.DataFrame:
    """A layer of ``de_train.h5ad`` or ``de_test.h5ad``: conditions x genes."""
    adata = open_h5ad(path)
    require_columns(adata.obs.columns, ("cell_type", "sm_name"), path)
    if layer not in adata.layers:
        raise SchemaError(
            f"{path} has no layer {layer!r}: {suggest(layer, adata.layers)}",
            expected=f"one of {shorten(adata.layers, 12)}",
        )
    genes = pd.Index(adata.var_names, name="gene")
    values = pd.DataFrame(np.asarray(adata.layers[layer]), columns=genes)
    if values.isna().to_numpy().any():
        what = f"{path}: layer {layer!r} holds missing values"
        raise SchemaError(what, expected="a complete table")
    return values.set_index(conditions_of(adata.obs, compound="sm_name", unique_in=path))
