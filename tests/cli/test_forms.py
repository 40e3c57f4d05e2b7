"""Profiles of every form are read alike by every verb that takes profiles."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen import cli
from perturbgen.cli.options import opened_profiles
from perturbgen.l1000 import extract, write_gctx
from perturbgen.profiles import Profiles
from perturbgen.simulation.screen import screen_anndata, screen_settings

FORMS = ("gctx", "extraction", "h5ad", "folder", "parquet", "csv")


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One simulated screen, written in each form."""
    root = tmp_path_factory.mktemp("forms")
    paths = {name: root / f"screen.{name}" for name in FORMS}
    overrides = ["design.compounds=8", "design.genetic=2", "biology.mechanisms=4"]
    screen = screen_anndata(screen_settings("tiny", overrides=overrides), seed=0)
    write_gctx(screen, paths["gctx"])
    extract([paths["gctx"]], paths["extraction"], common_genes=True)
    screen.write_h5ad(paths["h5ad"])
    profiles = Profiles.from_anndata(screen)
    profiles.write(paths["folder"])
    values = pd.DataFrame(profiles.values, profiles.meta.index, profiles.features)
    table = pd.concat(
        [profiles.meta[["perturbagen", "control"]], values.add_prefix("gene_")], axis=1
    )
    table.to_parquet(paths["parquet"])
    table.to_csv(paths["csv"], index=False)
    return paths


def test_every_form_gives_the_same_profiles(forms: dict[str, Path]) -> None:
    keys = {"h5ad": "X", "parquet": "gene_", "csv": "gene_"}
    with opened_profiles(forms["gctx"]) as first:
        for name, path in forms.items():
            with opened_profiles(path, keys.get(name)) as found:
                genes = found.features.str.removeprefix("gene_")
                assert genes.sort_values().equals(first.features.sort_values()), name
                values = pd.DataFrame(found.values, columns=genes)[first.features]
                np.testing.assert_array_equal(values.to_numpy(), first.values)
                assert found.meta["perturbagen"].tolist() == first.meta["perturbagen"].tolist()


def test_verbs_of_either_assay_take_them(forms: dict[str, Path], tmp_path: Path) -> None:
    assert cli._run(["-q", "retrieve", str(forms["gctx"]), "--same", "perturbagen"]) == 0
    verb = ["images", "map", str(forms["extraction"]), "--method", "pca", "--colour", "perturbagen"]
    assert cli._run(["-q", *verb, "--out", str(tmp_path / "map.html")]) == 0
