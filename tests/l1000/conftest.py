"""Files as CMap's many writers made them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from perturbgen.l1000 import landmarks

SAMPLES = [f"LJP005_A375_24H_X1_B19:{well}" for well in ("A03", "A04", "B07", "P24", "C01")]


def raw_gctx(
    path: Path,
    values: np.ndarray,
    *,
    genes: Any = None,
    samples: Any = None,
    version: Any = b"GCTX1.0",
    obs: dict[str, Any] | None = None,
    var: dict[str, Any] | None = None,
    leave_out: tuple[str, ...] = (),
    **how: Any,
) -> Path:
    """A GCTX written with h5py alone; ``values`` as stored (samples, genes), ids as given."""
    genes = landmarks()["gene_id"].tolist()[: values.shape[1]] if genes is None else genes
    samples = SAMPLES[: values.shape[0]] if samples is None else samples
    with h5py.File(path, "w") as file:
        if version is not None:
            file.attrs["version"] = np.bytes_(version) if isinstance(version, bytes) else version
        parts = {
            "0/DATA/0/matrix": values,
            "0/META/ROW/id": as_stored(genes),
            "0/META/COL/id": as_stored(samples),
        }
        parts |= {f"0/META/COL/{name}": as_stored(column) for name, column in (obs or {}).items()}
        parts |= {f"0/META/ROW/{name}": as_stored(column) for name, column in (var or {}).items()}
        for name, part in parts.items():
            if name not in leave_out:
                file.create_dataset(name, data=part, **(how if name.endswith("matrix") else {}))
    return path


def as_stored(values: Any) -> np.ndarray:
    """Text as fixed-length bytes, the rest as it is."""
    array = np.asarray(values)
    return array.astype("S") if array.dtype.kind == "U" else array


@pytest.fixture
def values() -> np.ndarray:
    """Five samples of seven genes, all numbers different."""
    return np.arange(35, dtype=np.float32).reshape(5, 7) - 17


@pytest.fixture
def gctx(tmp_path: Path, values: np.ndarray) -> Callable[..., Path]:
    """Write a GCTX of five samples and seven genes, or of other values."""

    def write(name: str = "a.gctx", data: np.ndarray | None = None, **how: Any) -> Path:
        return raw_gctx(tmp_path / name, values if data is None else data, **how)

    return write


INST = {
    "inst_id": SAMPLES,
    "rna_plate": ["LJP005_A375_24H_X1"] * 5,
    "rna_well": ["A03", "A04", "B07", "P24", "C01"],
    "pert_id": [
        "DMSO",
        "BRD-K12345678-001-02-3",
        "BRD-K12345678",
        "BRD-A00000001-003-99-1",
        "TRCN0000001",
    ],
    "pert_iname": ["DMSO", "drug", "drug", "other", "MECP2"],
    "pert_type": ["ctl_vehicle", "trt_cp", "TRT_CP", "trt_poscon", "trt_sh"],
    "pert_dose": ["-666", "10.0", "500", "3.33|3.33", "-666.000000"],
    "pert_dose_unit": ["-666", "um", "nM", "\u00b5M", "-666"],
    "pert_time": ["24", "24", "24|24", "24", "96"],
    "pert_time_unit": ["h"] * 5,
    "cell_id": ["A375"] * 5,
}


@pytest.fixture
def inst_info(tmp_path: Path) -> Callable[..., Path]:
    """Write GEO's inst_info of the five samples, some rows or columns changed."""
    import pandas as pd

    def write(
        name: str = "inst_info.txt",
        rows: Any = slice(None),
        encoding: str = "utf-8",
        **columns: Any,
    ) -> Path:
        table = pd.DataFrame(INST | columns).iloc[rows]
        table.to_csv(tmp_path / name, sep="\t", index=False, encoding=encoding)
        return tmp_path / name

    return write
