"""The little that is published of both assays for the same perturbations without the full profiles
of either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from pairs import Columns, as_pairs, nearest_doses, read_wells, strata

from perturbgen.core.files import require_file
from perturbgen.core.tables import read_header, require_columns
from perturbgen.profiles.crossmodal import PairedProfiles

_LABEL: Final = "Metadata_broad_sample"
_PLATE: Final = "cellpainting/SQ00015054_normalized_feature_select.csv.gz"
_COORDINATES: Final = ["UMAP_0", "UMAP_1", "TSNE_0", "TSNE_1"]
_NOT_PHENOTYPES: Final = [
    "Metadata_Plate",
    "treatment",
    "treatment_type",
    "Cell_type",
    "Time",
    "Metadata_Well",
    "cell_count",
]


def plate_and_maps(folder: str | Path) -> PairedProfiles:
    """One Cell Painting plate (A549) and L1000's 2-D coordinates of the same compounds and doses,
    replicates averaged.

    ``folder`` is imaging/. Two maps of two coordinates are all of L1000 that is published for these
    wells: what they cannot tell apart no method can find. The strata are the publication's own
    calls, of all plates.
    """
    folder = Path(folder)
    columns = Columns(
        _LABEL, "Metadata_mmoles_per_liter", "Metadata_Plate", "Metadata_moa", f"{_LABEL}=DMSO"
    )
    images = read_wells(folder / _PLATE, columns)
    l1000 = _read_tsv(
        folder / "paired" / "l1000_embeddings_umap_tsne.tsv.gz",
        [_LABEL, "pert_idose", *_COORDINATES],
    )
    l1000 = l1000[l1000["pert_idose"].str.endswith(" uM")]
    activity = _read_tsv(
        folder / "paired" / "compound_activity_full.tsv.gz",
        [_LABEL, "dose", "pass_cellpainting_thresh", "pass_l1000_thresh"],
    )
    nominal = np.unique(activity["dose"].str.removesuffix(" uM").astype(float))
    first = pd.DataFrame(images.values, columns=images.features)
    names = _perturbations(images.meta["compound"], images.meta["dose"], nominal)
    first = first.groupby(names.to_numpy()).mean()
    second = l1000.groupby(
        _perturbations(l1000[_LABEL], _micromolar(l1000["pert_idose"]), nominal).to_numpy()
    )[_COORDINATES].mean()
    shared = first.index[first.index.isin(second.index)]
    called = activity.set_index(
        _perturbations(activity[_LABEL], _micromolar(activity["dose"]), nominal).to_numpy()
    )
    meta = images.meta.set_index(names.to_numpy()).loc[lambda t: ~t.index.duplicated()].loc[shared]
    meta["stratum"] = strata(
        called["pass_cellpainting_thresh"], called["pass_l1000_thresh"], shared
    )
    return as_pairs(first, second, meta)


def _perturbations(compound: pd.Series, dose: pd.Series, nominal: np.ndarray) -> pd.Series:
    """compound @ dose."""
    doses = nearest_doses(dose.to_numpy(float), nominal)
    return compound.astype(str) + [f" @ {value:.3g}" for value in doses]


def _micromolar(text: pd.Series) -> pd.Series:
    """'3.33 uM' as 3.33."""
    return text.str.removesuffix(" uM").astype(float)


def _read_tsv(path: Path, columns: list[str]) -> pd.DataFrame:
    """Some columns of a tab-separated table."""
    path = require_file(path, "table")
    require_columns(read_header(path)[0].split("\t"), columns, path)
    return pd.read_csv(path, sep="\t", usecols=columns)


def overexpressed_genes(folder: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Genes over-expressed in U2OS in both assays: phenotype probabilities of images, and L1000;
    means over wells.

    ``folder`` is imaging/paired. Images are JUMP's ORF plates, standardised over all their wells;
    L1000 is TA-OE005, z-scores by plate as published. A gene stands in both under its symbol
    (mutants under other names).
    """
    folder = Path(folder)
    wells = pd.read_csv(require_file(folder / "jump_phenotype_profiles.tsv.gz", "table"), sep="\t")
    require_columns(wells.columns, _NOT_PHENOTYPES, "jump_phenotype_profiles.tsv.gz")
    wells = wells[(wells["treatment_type"] == "orf") & (wells["Cell_type"] == "U2OS")]
    # probabilities of fifteen phenotypes
    values = wells.drop(columns=_NOT_PHENOTYPES).apply(np.log)
    by_plate = values.groupby(wells["Metadata_Plate"])
    images = (
        ((values - by_plate.transform("mean")) / by_plate.transform("std"))
        .groupby(wells["treatment"])
        .mean()
    )
    columns = pd.read_csv(require_file(folder / "ta_oe005_u2os_col_meta.csv", "table")).set_index(
        "cid"
    )
    with np.load(require_file(folder / "ta_oe005_u2os_l1000.npz", "matrix")) as stored:
        matrix = pd.DataFrame(stored["X"], stored["cid"], stored["rid"])
    genes = columns.loc[matrix.index, "x_genesymbol_mutation"].to_numpy()
    l1000 = matrix.groupby(genes).mean()
    shared = images.index[images.index.isin(l1000.index)]
    return images.loc[shared], l1000.loc[shared]


def reproducible_together(path: str | Path, dataset: str) -> dict[str, Any]:
    """How many perturbations of ``RepCorrDF.xlsx`` are reproducible in both assays, one or neither,
    and Spearman's correlation of their replicate correlations.
    """
    sheets = [
        pd.read_excel(require_file(path, "workbook"), f"{assay}-{dataset}", engine="openpyxl")
        .rename(columns={"Unnamed: 0": "id"})
        .dropna(subset="RepCor")
        .set_index("id")
        for assay in ("cp", "l1k")
    ]
    shared = sheets[0].index[sheets[0].index.isin(sheets[1].index)]
    first, second = (sheet.loc[shared] for sheet in sheets)
    count = strata(
        first["RepCor"] > first["Rand90Perc"], second["RepCor"] > second["Rand90Perc"], shared
    ).value_counts()
    names = {name: int(count.get(name, 0)) for name in ("both", "one", "neither")}
    rho = float(first["RepCor"].corr(second["RepCor"], method="spearman"))
    return {
        "dataset": dataset,
        "perturbations in both": len(shared),
        **names,
        "Spearman of replicate correlations": rho,
    }
