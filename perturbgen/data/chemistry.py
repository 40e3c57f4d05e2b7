"""What can be said of a compound from its structure alone, so that one never measured can be described too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from perturbgen.data.tables import read_frame, require_columns
from perturbgen.errors import MissingDependencyError, SchemaError, shorten


def morgan_fingerprints(smiles: pd.Series, *, radius: int = 2, bits: int = 2048) -> pd.DataFrame:
    """Morgan fingerprints, (compounds, bits) of 0 and 1, for SMILES indexed by compound (Rogers & Hahn 2010)."""
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator
    except ImportError as error:
        raise MissingDependencyError("RDKit is not installed", fix="pip install 'perturbgen[chem]'") from error
    if not smiles.index.is_unique:
        raise SchemaError(f"compounds named twice: {shorten(smiles.index[smiles.index.duplicated()].unique())}")
    with rdBase.BlockLogs():
        molecules = [Chem.MolFromSmiles(text) if isinstance(text, str) and text else None for text in smiles]
    bad = [name for name, molecule in zip(smiles.index, molecules, strict=True) if molecule is None]
    if bad:
        raise SchemaError(f"{len(bad)} compounds have no valid SMILES: {shorten(bad)}", fix="correct or drop them")
    generator = GetMorganGenerator(radius=radius, fpSize=bits)
    rows = [generator.GetFingerprintAsNumPy(molecule) for molecule in molecules]
    return pd.DataFrame(np.array(rows, np.uint8).reshape(-1, bits), index=smiles.index).add_prefix("morgan_")


def read_smiles(path: Path) -> pd.Series:
    """SMILES by compound, from a table with the columns sm_name or compound and SMILES (in any case)."""
    table = read_frame(path).rename(columns=lambda name: str(name).lower()).rename(columns={"sm_name": "compound"})
    require_columns(table.columns, ["compound", "smiles"], path)
    found: pd.Series = table.drop_duplicates("compound").set_index("compound")["smiles"].dropna()
    return found
