"""The folder of the competition's metadata with one thing wrong at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import UserError
from perturbgen.simulation.op3.layout import _FILES, _read_genes, _read_layout

pytestmark = pytest.mark.data
Change = Callable[[pd.DataFrame], pd.DataFrame]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "id_map",
            lambda t: t.assign(sm_name=["nix", *t["sm_name"][1:]]),
            "without an entry .*'nix'",
        ),
        (
            "id_map",
            lambda t: t.assign(cell_type=["nix", *t["cell_type"][1:]]),
            "unknown cell types: 'nix'",
        ),
        ("id_map", lambda t: pd.concat([t, t[:1]]), "1 duplicated cell_type"),
        (
            "train",
            lambda t: t.assign(sm_lincs_id=[None, *t["sm_lincs_id"][1:]]),
            "'sm_lincs_id' is missing in 1 rows",
        ),
        ("wells", lambda t: t.assign(well="well"), "has wells 'well'"),
        ("wells", lambda t: t.assign(plate_name="plate_x"), "has plates 'plate_x'"),
        ("wells", lambda t: t.assign(count="many"), "'count' is not a number"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(
    real_data: Path, tmp_path: Path, name: str, change: Change, words: str
) -> None:
    for file in _FILES.values():
        shutil.copyfile(real_data / "op3" / file, tmp_path / file)
    change(pd.read_csv(tmp_path / _FILES[name])).to_csv(tmp_path / _FILES[name], index=False)
    with pytest.raises(UserError, match=words):
        _read_layout(tmp_path, rng=np.random.default_rng(0))


@pytest.mark.parametrize("name", ["compounds", "id_map"])
def test_a_file_of_another_kind_is_refused(real_data: Path, tmp_path: Path, name: str) -> None:
    for file in _FILES.values():
        shutil.copyfile(real_data / "op3" / file, tmp_path / file)
    (tmp_path / _FILES[name]).write_bytes(b"\xff\xfe\n\x00")
    with pytest.raises(UserError, match="is not a readable"):
        _read_layout(tmp_path, rng=np.random.default_rng(0))


def test_the_real_gene_list_is_unique_and_complete(real_data: Path) -> None:
    genes = _read_genes(real_data / "op3" / "genes_18211.txt")
    assert len(genes) == 18_211
    assert genes[:2].tolist() == ["A1BG", "A1BG-AS1"]
