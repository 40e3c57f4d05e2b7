import builtins
from pathlib import Path

import pandas as pd
import pytest

from perturbgen.core.errors import MissingDependencyError, SchemaError
from perturbgen.data.covariates import morgan_fingerprints

pytest.importorskip("rdkit", reason="needs the extra 'chem'")


def test_one_molecule_written_two_ways_has_one_fingerprint() -> None:
    table = morgan_fingerprints(pd.Series({"ethanol": "CCO", "same": "OCC", "benzene": "c1ccccc1"}))
    assert (table.loc["ethanol"] == table.loc["same"]).all()
    assert (table.loc["ethanol"] != table.loc["benzene"]).any()
    assert table.shape == (3, 2048)


def test_methane_sets_one_bit() -> None:
    assert morgan_fingerprints(pd.Series({"methane": "C"}), bits=64).loc["methane"].sum() == 1


def test_bad_smiles_and_duplicates_are_named() -> None:
    with pytest.raises(SchemaError, match="2 compounds have no valid SMILES: 'x', 'y'"):
        morgan_fingerprints(pd.Series({"a": "C", "x": "C1CC", "y": None}))
    with pytest.raises(SchemaError, match="named twice: 'a'"):
        morgan_fingerprints(pd.Series(["C", "C"], index=["a", "a"]))


def test_without_rdkit_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("rdkit"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependencyError, match=r"perturbgen\[chem\]"):
        morgan_fingerprints(pd.Series({"a": "C"}))


@pytest.mark.data
def test_every_real_compound_has_a_fingerprint_of_its_own(real_data: Path) -> None:
    obs = pd.read_csv(real_data / "op3" / "train_obs_614.csv")
    table = morgan_fingerprints(obs.drop_duplicates("sm_name").set_index("sm_name")["SMILES"])
    assert len(table) == 146
    assert not table.duplicated().any()
