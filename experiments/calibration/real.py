"""The real column: computed from the real files by the functions that the simulated one is made by,
and only where no file is public taken from what was published of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from statistics_of import PUBLISHED, TYPES, of_compound_effects, of_ranks, standardised

# Printed in public notebooks: the table's mean, SD, median, the score of zeros on its rows and on
# the public board, and the SD of every gene over the NK rows.
_PRINTED = {
    "table: mean": 0.323,
    "table: SD": 2.369,
    "table: median": 0.061,
    "table: zeros": 1.2815,
    "table: zeros, public rows": 0.90,
}
# The decomposition published beside compound_effects.csv.
_DECOMPOSED = {
    "effects: mean square over other types": 0.1642,
    "effects: reproducible interaction": 0.0813,
}


def real_statistics(folder: Path) -> dict[str, float]:
    """Every statistic that is known of the real experiment."""
    z, drugs = real_ranks(folder)
    effects = pd.read_csv(folder / "compound_effects.csv")
    sd = pd.read_csv(folder / "nk_signed_log10p_sd_per_gene.csv").iloc[:, 1]
    found = of_ranks(z, drugs, real_places(folder)) | of_compound_effects(effects) | _DECOMPOSED
    found |= published(folder / "openproblems_results.json") | _PRINTED
    found |= {f"table: NK gene SD, {q} %": float(np.percentile(sd, q)) for q in (25, 50, 75)}
    return found | {"share of genes that pass the filter": 5317 / 18211}


def real_ranks(folder: Path) -> tuple[np.ndarray, list[str]]:
    """Standardised rank scores (4 cell types, drugs, genes) in our order, and the drugs."""
    with np.load(folder / "de_ranks_4x135x6349.npz") as file:
        cells, drugs = file["cells"].astype(str).tolist(), file["drugs"].astype(str).tolist()
        z = file["Z"][[cells.index(name) for name in TYPES]].astype(float)
    return standardised(z), drugs


def real_places(folder: Path) -> pd.DataFrame:
    """Library, row and column of the compounds whose wells are public (index: sm_name)."""
    wells = pd.read_csv(folder / "plate_layout_and_predicted_counts.csv", dtype={"well": str})
    first = wells["plate_name"].isin(["plate_0", "plate_4", "plate_5"])
    table = pd.DataFrame(
        {
            "sm_name": wells["sm_name"],
            "row": wells["well"].str[0],
            "col": wells["well"].str[1:],
            "library": first.map({True: "first", False: "second"}),
        }
    )
    return table.drop_duplicates("sm_name").set_index("sm_name")


def published(path: Path) -> dict[str, float]:
    """RMSE, MAE and Pearson of the published predictors that need no model."""
    scores = {row["method_id"]: row["metric_values"] for row in json.loads(path.read_text())}
    found = {}
    for ours, theirs in {"zeros": "zeros", **PUBLISHED}.items():
        for label in ("RMSE", "MAE", "Pearson"):
            if (ours, label) != ("zeros", "Pearson"):
                found[f"{ours}: {label}"] = float(scores[theirs][f"mean_rowwise_{label.lower()}"])
    return found
