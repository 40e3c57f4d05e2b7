"""The experiment repeated predicts the measured one better than nothing, and is not the same."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.simulation import simulate, write_replicate


@pytest.mark.slow
def test_a_replicate_has_the_truth_s_rows_and_correlates_with_it(tmp_path: Path) -> None:
    folder = simulate("tiny", seed=0, out=tmp_path / "tiny")
    key = ["cell_type", "sm_name"]
    truth = pd.read_parquet(folder / "de_truth.parquet").drop(columns="id").set_index(key)
    found = pd.read_parquet(write_replicate(folder)).set_index(key)
    assert sorted(found.index) == sorted(truth.index)
    assert list(found.columns) == list(truth.columns)
    other = found.loc[truth.index].to_numpy()
    assert not np.allclose(other, truth)
    own = [np.corrcoef(a, b)[0, 1] for a, b in zip(truth.to_numpy(), other, strict=True)]
    shifted = [
        np.corrcoef(a, b)[0, 1]
        for a, b in zip(truth.to_numpy(), np.roll(other, 1, axis=0), strict=True)
    ]
    assert np.mean(own) > np.mean(shifted) + 0.05
