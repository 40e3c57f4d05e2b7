"""What an extraction wrote: profiles as a memory map, beside the tables of their samples and genes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from perturbgen.errors import InputError, SchemaError, shorten
from perturbgen.files import require_file, require_folder

if TYPE_CHECKING:
    from anndata import AnnData

MATRIX: Final = "profiles.npy"
MANIFEST: Final = "manifest.json"


@dataclass(frozen=True)
class Profiles:
    """An extracted folder: the ``matrix`` (samples, genes) on disk, tables of samples and genes, the ``manifest``."""

    folder: Path
    matrix: np.ndarray
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Profiles:
        """Map the folder; nothing is read but the manifest."""
        folder = require_folder(folder, "extraction")
        manifest = json.loads(require_file(folder / MANIFEST, "manifest").read_text())
        path = require_file(folder / MATRIX, "matrix")
        try:
            matrix = np.load(path, mmap_mode="r")
        except ValueError as error:
            raise InputError(f"{path} is damaged: {error}", cause="a copy that broke off") from error
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
        """The genes, indexed by Entrez id: symbol, mean, standard deviation, number of missing values."""
        return pd.read_parquet(self.folder / "genes.parquet").set_index("gene_id")

    def __len__(self) -> int:
        return len(self.matrix)

    def to_anndata(self, samples: Sequence[str] | None = None) -> AnnData:
        """AnnData of some samples, in the order asked for, or of all, read into memory as float32."""
        import anndata

        wanted = self.samples.index if samples is None else pd.Index(samples)
        rows = self.samples.index.get_indexer(wanted)
        if (rows < 0).any():
            missing = wanted[rows < 0]
            raise SchemaError(f"{self.folder} lacks {len(missing)} of the wanted samples: {shorten(missing)}")
        values = np.asarray(self.matrix[rows], dtype=np.float32)
        obs, var = self.samples.iloc[rows].rename_axis(None), self.genes.rename_axis(None)
        return anndata.AnnData(values, obs=obs, var=var)
