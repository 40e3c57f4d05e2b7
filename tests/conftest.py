"""Shared fixtures: where real data and R are, and what to do when they are not."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

# Tests work on small arrays, for which a second thread only waits; on shared cores it waits long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Trainings of an automatic precision are in float32 on every processor: this one has no bfloat16.
if platform.machine() in ("x86_64", "AMD64"):
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")

CI = os.environ.get("CI") == "true"
DATA = Path(os.environ.get("PERTURBGEN_DATA", Path(__file__).parents[2] / "shared" / "data"))


def absent(what: str) -> None:
    """Skip, saying why; under CI an absence is a failure."""
    if CI:
        pytest.fail(f"{what}, and CI=true allows no such skip")
    pytest.skip(what)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data (see PERTURBGEN_DATA)."""
    if not DATA.is_dir():
        absent(f"no real data at {DATA}")
    return DATA


@pytest.fixture(scope="session")
def rscript() -> str:
    """The Rscript program, with limma, edgeR and statmod installed."""
    from perturbgen.cli.doctor import _r_rows

    missing = [row["what"] for row in _r_rows() if row["found"] is None]
    if missing:
        absent(f"{', '.join(missing)} not found; r/install.sh installs them")
    return "Rscript"


@contextmanager
def without_pictures() -> Iterator[None]:
    """Runs that show TensorBoard nothing: figures are nine tenths of so short a training."""
    with pytest.MonkeyPatch.context() as patch:
        for method in ("epoch", "close"):
            patch.setattr(f"perturbgen.train.board.Board.{method}", lambda *_: None)
        yield


@pytest.fixture
def no_pictures() -> Iterator[None]:
    """A test of trainings, not of what is drawn of them."""
    with without_pictures():
        yield


@dataclass
class KaggleFolder:
    """A tiny set of the competition's files; a test changes a part, then writes."""

    path: Path
    genes: list[str] = field(default_factory=lambda: ["TP53", "A1BG", "CD69", "IL2", "ZZZ3"])
    counts: np.ndarray = field(
        default_factory=lambda: np.array(
            [
                [3, 0, 1, 0, 0],
                [0, 2, 0, 0, 0],
                [1, 1, 1, 1, 0],
                [0, 0, 9, 0, 0],
                [5, 0, 0, 2, 0],
                [0, 0, 0, 0, 0],
            ]
        )
    )

    def __post_init__(self) -> None:
        cells = len(self.counts)
        compounds = ["Dimethyl Sulfoxide", "Clotrimazole", "Belinostat"] * 2
        self.meta = pd.DataFrame(
            {
                "obs_id": [f"{i:03x}e{i}00000000000" for i in range(cells)],
                "library_id": "library_0",
                "plate_name": ["plate_0"] * 3 + ["plate_1"] * 3,
                "well": ["A1", "A2", "A3"] * 2,
                "row": "A",
                "col": [1, 2, 3] * 2,
                "cell_id": "PBMC",
                "donor_id": ["donor_0"] * 3 + ["donor_1"] * 3,
                "cell_type": ["NK cells", "NK cells", "B cells", "B cells", "B cells", "NK cells"],
                "sm_lincs_id": "LSM-1",
                "sm_name": compounds,
                "SMILES": "C",
                "dose_uM": [14.1, 1.0, 0.1] * 2,
                "timepoint_hr": 24.0,
                "control": [name != "Clotrimazole" for name in compounds],
            }
        )
        self.meta.loc[3, "sm_name"] = "Dimethyl Sulfoxide"

    @property
    def long(self) -> pd.DataFrame:
        """The non-zeros, as adata_train.parquet lists them."""
        row, column = np.nonzero(self.counts)
        values = self.counts[row, column]
        labels = {
            "obs_id": self.meta["obs_id"].to_numpy()[row],
            "gene": np.array(self.genes, object)[column],
        }
        return pd.DataFrame(labels | {"count": values, "normalized_count": np.log1p(values)})

    def write(
        self,
        *,
        long: pd.DataFrame | None = None,
        excluded: list[tuple[str, str]] | None = None,
        genes: bool = True,
    ) -> Path:
        """Write the files; ``excluded`` are (obs_id, gene) pairs."""
        (self.long if long is None else long).to_parquet(
            self.path / "adata_train.parquet", index=False
        )
        self.meta.to_csv(self.path / "adata_obs_meta.csv", index=False)
        if genes:
            header = pd.DataFrame([[0, *([0.0] * len(self.genes))]], columns=["id", *self.genes])
            header.to_csv(self.path / "sample_submission.csv", index=False)
        if excluded is not None:
            pairs = pd.DataFrame(excluded, columns=["obs_id", "gene"])
            pairs.to_csv(self.path / "adata_excluded_ids.csv", index=False)
        return self.path


@pytest.fixture
def kaggle(tmp_path: Path) -> KaggleFolder:
    """A tiny Kaggle folder of six cells and five genes, the last of which nobody expresses."""
    folder = tmp_path / "kaggle"
    folder.mkdir()
    return KaggleFolder(folder)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Commands set the package's logger up; no test sees what another one, or a fixture of a
    module before it, set.
    """
    yield
    logger = logging.getLogger("perturbgen")
    logger.setLevel(logging.NOTSET)
    logger.handlers.clear()
