"""What an unlucky user brings to retrieve and neighbours."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from perturbgen.cli import _run as command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["retrieve", "none.h5ad", "--same", "compound"], "none.h5ad has no rows"),
        (["neighbours", "none.h5ad", "--same", "compound"], "none.h5ad has no rows"),
        (["retrieve", "some.h5ad", "--same", " ,"], "--same names no column"),
        (["neighbours", "some.h5ad", "--same", ""], "--same names no column"),
        (["retrieve", "some.h5ad", "--same", "compound", "--device", "abacus"], "--device abacus"),
    ],
)
def test_mistakes_are_explained(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    obs = pd.DataFrame({"compound": ["a", "a", "b", "b"]}, index=list("wxyz"))
    some = AnnData(obs=obs, obsm={"X_latent": np.eye(4, 2)})
    some.write_h5ad("some.h5ad")
    some[:0].copy().write_h5ad("none.h5ad")
    assert command([*arguments, "--key", "X_latent"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
