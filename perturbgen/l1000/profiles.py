"""What an extraction wrote; and small data as AnnData: a plate of level 4, level-5 signatures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, SchemaError, shorten
from perturbgen.core.files import read_json, require_file, require_folder
from perturbgen.l1000.fields import decode
from perturbgen.l1000.gctx import GctxFile
from perturbgen.l1000.metadata import read_metadata
from perturbgen.l1000.samples import describe_samples, landmarks

if TYPE_CHECKING:
    from anndata import AnnData

PROFILES: Final = "profiles.npy"
MANIFEST: Final = "manifest.json"


@dataclass(frozen=True)
class Extraction:
    """An extracted folder: the ``matrix`` (samples, genes) on disk, tables, the ``manifest``."""

    folder: Path
    matrix: np.ndarray
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Extraction:
        """Map the folder; nothing is read but the manifest."""
        folder = require_folder(folder, "extraction")
        manifest = read_json(folder / MANIFEST, "manifest")
        path = require_file(folder / PROFILES, "matrix")
        try:
            # mapped: the landmarks of both phases are 6.5 GB
            matrix = np.load(path, mmap_mode="r")
        except ValueError as error:
            raise InputError(
                f"{path} is damaged: {error}", cause="a copy that broke off"
            ) from error
        if matrix.shape != (manifest["samples"], manifest["genes"]):
            raise InputError(
                f"{path} is {matrix.shape[0]:,} x {matrix.shape[1]:,}, the manifest says "
                f"{manifest['samples']:,} x {manifest['genes']:,}",
                cause="files of two extractions in one folder",
            )
        return cls(folder, matrix, manifest)

    @cached_property
    def samples(self) -> pd.DataFrame:
        """The samples, indexed by id, in the order of the matrix."""
        return pd.read_parquet(self.folder / "samples.parquet").set_index("sample")

    @cached_property
    def genes(self) -> pd.DataFrame:
        """The genes by Entrez id: symbol, mean, standard deviation, number of missing values."""
        return pd.read_parquet(self.folder / "genes.parquet").set_index("gene_id")

    def __len__(self) -> int:
        return len(self.matrix)

    def to_anndata(self, samples: Sequence[str] | None = None) -> AnnData:
        """AnnData of some samples, in the order asked for, or of all, as float32."""
        import anndata

        wanted = self.samples.index if samples is None else pd.Index(samples)
        rows = self.samples.index.get_indexer(wanted)
        if (rows < 0).any():
            missing = wanted[rows < 0]
            raise SchemaError(
                f"{self.folder} lacks {len(missing)} of the wanted samples: {shorten(missing)}"
            )
        values = np.asarray(self.matrix[rows], dtype=np.float32)
        obs, var = self.samples.iloc[rows].rename_axis(None), self.genes.rename_axis(None)
        return anndata.AnnData(values, obs=obs, var=var)


def read_plate(path: str | Path, *, metadata: str | Path | None = None) -> AnnData:
    """A GCTX or GCT file as AnnData (float32), samples in our columns, genes by Entrez id.

    Samples are described by the ``metadata`` table where one is given, else by the file's own
    fields.
    """
    import anndata

    with GctxFile(path) as file:
        tables = [] if metadata is None else [read_metadata(metadata)]
        obs = (
            describe_samples(file, file.arrow_samples(), tables)
            .set_index(file.samples)
            .rename_axis(None)
        )
        return anndata.AnnData(file.read(), obs=obs, var=_entrez(file))


def _entrez(file: GctxFile) -> pd.DataFrame:
    """The genes by Entrez id where the file tells it, else by its own ids, with symbols."""
    names = next((name for name in ("pr_gene_id", "gene_id") if name in file.fields("genes")), None)
    ids = (
        file.genes
        if names is None
        else pd.Index([decode(value) for value in file.metadata("genes")[names]])
    )
    symbols = next(
        (name for name in ("pr_gene_symbol", "gene_symbol") if name in file.fields("genes")), None
    )
    known = landmarks().set_index("gene_id")["gene_symbol"]
    named = file.metadata("genes")[symbols].to_numpy() if symbols else known.reindex(ids).to_numpy()
    return pd.DataFrame(
        {"gene_symbol": named, "landmark": ids.isin(known.index)}, index=pd.Index(ids, dtype=object)
    )


def read_level5(path: str | Path, metadata: str | Path) -> AnnData:
    """Level-5 signatures from an NPZ (X, rid, gene) and a table whose ``id`` names its rows."""
    import anndata

    path = require_file(path, "NPZ of signatures")
    try:
        # an object array could run code
        with np.load(path, allow_pickle=False) as arrays:
            values, probes, symbols = arrays["X"], arrays["rid"], arrays["gene"]
    except (ValueError, KeyError, OSError) as error:
        raise InputError(
            f"{path} is no NPZ of signatures: {error}", expected="arrays X, rid and gene"
        ) from error
    found = read_metadata(metadata)
    if len(found.ids) != len(values):
        raise SchemaError(
            f"{path} has {len(values):,} signatures, {metadata} describes {len(found.ids):,}"
        )
    obs = found.table.set_index(pd.Index(found.ids.to_pylist(), dtype=object))
    return anndata.AnnData(
        values, obs=obs, var=pd.DataFrame({"gene_symbol": symbols}, index=probes.astype(object))
    )
