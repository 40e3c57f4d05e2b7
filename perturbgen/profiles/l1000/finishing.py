"""The last step of an extraction: tables, manifest, what is odd, and the folder's name."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from perturbgen import __version__
from perturbgen.errors import shorten
from perturbgen.files import remove
from perturbgen.profiles.l1000.growing import Growing
from perturbgen.profiles.l1000.profiles import MANIFEST, MATRIX

if TYPE_CHECKING:
    from perturbgen.profiles.l1000.extraction import Source

log = logging.getLogger(__name__)


def finish(
    part: Path,
    out: Path,
    samples: pd.DataFrame,
    sources: Sequence[Source],
    wanted: pd.DataFrame,
    plan: dict[str, Any],
) -> None:
    """Write the tables and the manifest, warn of what is odd, and give the folder its name."""
    moments, norms = Growing.result(part)
    report(wanted, moments.missing, norms)
    genes = wanted.assign(mean=moments.mean, sd=moments.sd, missing=moments.missing.astype(int))
    genes.to_parquet(part / "genes.parquet", index=False)
    write_samples(samples.assign(norm=norms), pa.chunked_array([source.ids for source in sources]), part)
    manifest = {
        "perturbgen": __version__,
        "matrix": MATRIX,
        "samples": len(samples),
        "genes": len(wanted),
        "level": sources[0].level,
        "pert_types": samples["pert_type"].astype(object).fillna("unknown").value_counts().to_dict(),
        "controls": int(samples["control"].sum()),
        "missing_values": int(moments.missing.sum()),
        "genes_with_missing": int((moments.missing > 0).sum()),
        "zero_profiles": int((norms == 0).sum()),
        "plan": plan,
    }
    (part / MANIFEST).write_text(json.dumps(manifest, indent=1))
    Growing.forget(part)
    remove(out)
    part.replace(out)


def report(wanted: pd.DataFrame, missing: np.ndarray, norms: np.ndarray) -> None:
    """Say which genes have missing values and how many profiles are nothing but zeros."""
    if (missing > 0).any():
        names = shorten(wanted["gene_symbol"].where(wanted["gene_symbol"] != "", wanted["gene_id"])[missing > 0])
        log.warning("%d genes have missing values: %s (--fill 0 writes zeros)", (missing > 0).sum(), names)
    if (norms == 0).any():
        log.warning("%s profiles are all zeros: the column norm tells which", f"{(norms == 0).sum():,}")


def write_samples(samples: pd.DataFrame, ids: pa.ChunkedArray, part: Path) -> None:
    """The table of samples with their ids first."""
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(samples, preserve_index=False)
    pq.write_table(table.add_column(0, "sample", ids), part / "samples.parquet")
