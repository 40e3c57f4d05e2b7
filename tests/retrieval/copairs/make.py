"""Makes the tables of this folder with copairs 0.5.5 (numpy 2.4.6, pandas 3.1.1).

python -m venv /tmp/copairs && /tmp/copairs/bin/pip install copairs==0.5.5
/tmp/copairs/bin/python tests/retrieval/copairs/make.py ../shared/data
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from copairs.map import average_precision, mean_average_precision

HERE = Path(__file__).parent
PLATE = "imaging/cellpainting/SQ00015054_normalized_feature_select.csv.gz"


def by_group(ap: pd.DataFrame, column: str) -> pd.DataFrame:
    options: dict[str, Any] = {
        "null_size": 200_000,
        "threshold": 0.05,
        "seed": 0,
        "progress_bar": False,
    }
    return mean_average_precision(ap, [column], **options).set_index(column)


def made_up() -> None:
    """120 profiles of 15 groups on 4 plates; positives anywhere, or with negatives on the plate."""
    rng = np.random.default_rng(7)
    group, plate = rng.integers(15, size=120), rng.integers(4, size=120)
    x = (rng.normal(size=(15, 8))[group] * 0.6 + rng.normal(size=(120, 8))).round(4)
    meta = pd.DataFrame({"g": [f"g{i:02d}" for i in group], "plate": [f"p{i}" for i in plate]})
    everyone = average_precision(meta, x, ["g"], [], [], ["g"], progress_bar=False)
    other = average_precision(meta, x, ["g"], ["plate"], ["plate"], ["g"], progress_bar=False)
    table = meta.assign(**{f"x{i}": x[:, i] for i in range(8)})
    table["ap_everyone"] = everyone["average_precision"]
    table["nap_everyone"] = everyone["normalized_average_precision"]
    table["ap_other_plate"] = other["average_precision"].where(other["n_pos_pairs"] > 0)
    table.to_csv(HERE / "profiles.csv", index=False)
    one, two = by_group(everyone, "g"), by_group(other, "g")
    columns = {
        "map_everyone": one["mean_average_precision"],
        "p_everyone": one["p_value"],
        "q_everyone": one["corrected_p_value"],
        "map_other_plate": two["mean_average_precision"],
        "p_other_plate": two["p_value"],
    }
    pd.DataFrame(columns).to_csv(HERE / "groups.csv")


def whitened(x: Any, control: Any) -> Any:
    """Standardised on the controls, then whitened by their covariance plus the identity."""
    z = (x - x[control].mean(axis=0)) / x[control].std(axis=0)
    values, vectors = np.linalg.eigh(np.cov(z[control].T, ddof=0))
    return z @ (vectors / np.sqrt(np.maximum(values, 0) + 1)) @ vectors.T


def cell_painting(data: Path, *, corrected: bool) -> None:
    """Each compound's wells against its plate's DMSO; ``ref`` is copairs' idiom for that."""
    table = pd.read_csv(data / PLATE)
    named = [name for name in table if name.startswith("Metadata_")]
    meta = table[named].assign(compound=table["Metadata_broad_sample"])
    control = meta["compound"] == "DMSO"
    meta["ref"] = np.where(control, np.arange(len(meta)), -1)
    x = table.drop(columns=named).to_numpy(float)
    x = whitened(x, control.to_numpy()) if corrected else x
    ap = average_precision(
        meta, x, ["compound", "ref"], [], [], ["compound", "ref"], progress_bar=False
    )
    groups = by_group(ap[~control.to_numpy()], "compound").rename(
        columns={
            "mean_average_precision": "map",
            "mean_normalized_average_precision": "nmap",
            "p_value": "p",
            "corrected_p_value": "q",
        }
    )
    name = "cellpainting_whitened.csv" if corrected else "cellpainting.csv"
    groups[["map", "nmap", "p", "q"]].to_csv(HERE / name, float_format="%.9g")


if __name__ == "__main__":
    made_up()
    cell_painting(Path(sys.argv[1]), corrected=False)
    cell_painting(Path(sys.argv[1]), corrected=True)
