"""Small real data as AnnData in our words: a plate of level 4, a set of level-5 signatures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from perturbgen.errors import InputError, SchemaError
from perturbgen.files import require_file
from perturbgen.profiles.l1000.fields import decode
from perturbgen.profiles.l1000.gctx import GctxFile
from perturbgen.profiles.l1000.genes import landmarks
from perturbgen.profiles.l1000.samples import arrow_ids, describe, read_metadata

if TYPE_CHECKING:
    from anndata import AnnData


def read_plate(path: str | Path, *, metadata: str | Path | None = None) -> AnnData:
    """A GCTX or GCT file as AnnData (samples x genes, float32) with samples in our columns and genes by Entrez id.

    Samples are described by the ``metadata`` table where one is given, else by the file's own fields.
    """
    import anndata

    with GctxFile(path) as file:
        tables = [] if metadata is None else [read_metadata(metadata)]
        obs = describe(file, arrow_ids(file), tables).set_index(file.samples).rename_axis(None)
        return anndata.AnnData(file.read(), obs=obs, var=entrez(file))


def entrez(file: GctxFile) -> pd.DataFrame:
    """The genes by Entrez id where the file tells it, else by its own ids, with symbols where they are known."""
    names = next((name for name in ("pr_gene_id", "gene_id") if name in file.fields("genes")), None)
    ids = file.genes if names is None else pd.Index([decode(value) for value in file.metadata("genes")[names]])
    symbols = next((name for name in ("pr_gene_symbol", "gene_symbol") if name in file.fields("genes")), None)
    known = landmarks().set_index("gene_id")["gene_symbol"]
    named = file.metadata("genes")[symbols].to_numpy() if symbols else known.reindex(ids).to_numpy()
    return pd.DataFrame({"gene_symbol": named, "landmark": ids.isin(known.index)}, index=pd.Index(ids, dtype=object))


def read_signatures(path: str | Path, metadata: str | Path) -> AnnData:
    """Level-5 signatures from an NPZ (X, rid, gene) and a tab-separated table whose column ``id`` names its rows."""
    import anndata

    path = require_file(path, "NPZ of signatures")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            values, probes, symbols = arrays["X"], arrays["rid"], arrays["gene"]
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"{path} is no NPZ of signatures: {error}", expected="arrays X, rid and gene") from error
    found = read_metadata(metadata)
    if len(found.ids) != len(values):
        raise SchemaError(f"{path} has {len(values):,} signatures, {metadata} describes {len(found.ids):,}")
    obs = found.table.set_index(pd.Index(found.ids.to_pylist(), dtype=object))
    return anndata.AnnData(values, obs=obs, var=pd.DataFrame({"gene_symbol": symbols}, index=probes.astype(object)))
