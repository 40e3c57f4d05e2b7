"""One strict encoder for all covariates of a model, kept with the run, and fingerprints.

Fingerprints are what can be said of a compound from its structure alone, so that one that was never
measured can be described, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, MissingDependencyError, SchemaError, shorten, suggest
from perturbgen.core.files import atomic_path, require_file
from perturbgen.core.tables import read_frame, require_columns, with_compound

if TYPE_CHECKING:
    from anndata import AnnData

_UNKNOWN = "unknown"


@dataclass(frozen=True)
class CovariateEncoder:
    """Categories and number scales of covariates; their order is the order of the features.

    ``categories`` maps each categorical column to its values; the last one of the columns in
    ``unknown`` has that name, and stands for values that the cells it was fitted on do not have.
    ``scales`` maps each numeric column to its mean and standard deviation in these cells. A run
    fits it on all cells of its file, those of validation and test included: only what no cell of it
    has is refused.
    """

    categories: Mapping[str, tuple[str, ...]]
    scales: Mapping[str, tuple[float, float]]
    unknown: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls,
        obs: pd.DataFrame,
        categorical: Sequence[str],
        numeric: Sequence[str] = (),
        *,
        unknown: Sequence[str] = (),
    ) -> CovariateEncoder:
        """The values of the ``categorical`` columns and the scales of the ``numeric`` ones.

        Columns in ``unknown`` get a category of that name for values that only appear later.
        """
        undeclared = [name for name in unknown if name not in categorical]
        if undeclared:
            what = f"unknown={shorten(undeclared)} is not among the categorical covariates"
            raise SchemaError(what)
        categories: dict[str, tuple[str, ...]] = {}
        for name in categorical:
            # Sorted, so that neither the order of cells nor pandas' categories change the codes.
            values = sorted(complete(obs, name).astype(str).unique())
            if name in unknown:  # cells that are called unknown already share the category
                values = [*(value for value in values if value != _UNKNOWN), _UNKNOWN]
            categories[name] = tuple(values)
        scales = {}
        for name in numeric:
            numbers = _finite_numbers(obs, name)
            # A constant column is divided by 1, so that it encodes as zero.
            sd = float(numbers.std())
            scales[name] = (float(numbers.mean()), sd if sd > 0 else 1.0)
        return cls(categories, scales, tuple(unknown))

    def codes(self, obs: pd.DataFrame) -> np.ndarray:
        """The number of each cell's category, (cells, categorical covariates), int64."""
        columns = [self._codes(obs, name) for name in self.categories]
        return np.stack(columns, axis=1) if columns else np.empty((len(obs), 0), np.int64)

    def features(self, obs: pd.DataFrame) -> np.ndarray:
        """One-hot categories, then standardised numbers: (cells, features) float32."""
        hot = [
            np.eye(len(values), dtype=np.float32)[self._codes(obs, name)]
            for name, values in self.categories.items()
        ]
        scaled = [
            ((_finite_numbers(obs, name) - mean) / sd).astype(np.float32)[:, None]
            for name, (mean, sd) in self.scales.items()
        ]
        return np.hstack([np.empty((len(obs), 0), np.float32), *hot, *scaled])

    def absent(self, obs: pd.DataFrame) -> dict[str, list[str]]:
        """The categories that none of these cells has, where there are any, by covariate."""
        found = {}
        for name, values in self.categories.items():
            seen = set(obs[name].astype(str))
            if absent := [value for value in values if value not in seen]:
                found[name] = absent
        return found

    @property
    def feature_names(self) -> list[str]:
        """A name for each feature: ``plate=plate_0`` or the numeric column."""
        hot = [f"{name}={value}" for name, values in self.categories.items() for value in values]
        return [*hot, *self.scales]

    def to_json(self) -> str:
        """The encoder as text; equal encoders give equal text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> CovariateEncoder:
        """The encoder that ``to_json`` wrote."""
        try:
            state = json.loads(text)
            categories, scales = (
                {k: tuple(v) for k, v in state[key].items()} for key in ("categories", "scales")
            )
            return cls(categories, scales, tuple(state.get("unknown", ())))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            wanted = "what CovariateEncoder.to_json wrote"
            raise InputError(f"not a covariate encoder: {error!r}", expected=wanted) from None

    def save(self, path: str | Path) -> None:
        """Write the encoder beside a run."""
        with atomic_path(path) as part:
            part.write_text(self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> CovariateEncoder:
        """Read the encoder of a run."""
        return cls.from_json(require_file(path, "covariate encoder").read_text())

    def _codes(self, obs: pd.DataFrame, name: str) -> np.ndarray:
        """The number of each cell's category in one column (cells,) int64."""
        values, known = complete(obs, name).astype(str), self.categories[name]
        codes = pd.Index(known).get_indexer(pd.Index(values))
        unseen = codes < 0
        if unseen.any() and name not in self.unknown:
            names = values[unseen].unique()
            what = f"values that the run's file does not have: {shorten(names)}"
            table = "smiles.csv" if name == "compound" else "numbers.csv"
            raise SchemaError(
                f"covariate {name!r} has {what}",
                expected=f"one of {len(known)} known values; {suggest(str(names[0]), known)}",
                fix=f'[conditions.{name}] encoding = "descriptors", descriptors = "{table}" '
                f"(a row for each {name}, this one too), and train again",
            )
        codes[unseen] = len(known) - 1
        return codes.astype(np.int64)


def complete(
    obs: pd.DataFrame, name: str, role: str = "covariate", *, rows: str = "cells"
) -> pd.Series:
    """A column of obs that exists and has no missing value; ``role`` is what it serves as."""
    if name not in obs:
        what = f"{role} {name!r}: obs has no such column"
        raise SchemaError(what, fix=suggest(name, obs.columns))
    absent = obs.index[obs[name].isna()]
    if len(absent):
        what = f"{role} {name!r} is missing in {len(absent)} {rows}: {shorten(absent)}"
        raise SchemaError(what, fix="drop or fill them")
    return obs[name]


def _finite_numbers(obs: pd.DataFrame, name: str) -> np.ndarray:
    """A numeric column, finite, (cells,) float64."""
    values = pd.to_numeric(complete(obs, name), errors="coerce").to_numpy(np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        odd = shorten(obs.loc[bad, name].unique())
        raise SchemaError(f"covariate {name!r} is not a finite number in {bad.sum()} cells: {odd}")
    return values


def require_same_genes(adata: AnnData, genes: Sequence[str]) -> None:
    """Refuse data whose genes are not those of a run, in its order."""
    if list(adata.var_names) == list(genes):
        return
    missing = pd.Index(genes).difference(adata.var_names, sort=False)
    extra = adata.var_names.difference(pd.Index(genes), sort=False)
    how = "another order"
    if len(missing) + len(extra):
        how = f"missing {shorten(missing)}; unexpected {shorten(extra)}"
    wanted = f"the run's {len(genes):,} genes, in order"
    raise SchemaError(f"the genes differ from the run's: {how}", expected=wanted)


def morgan_fingerprints(smiles: pd.Series, *, radius: int = 2, bits: int = 2048) -> pd.DataFrame:
    """Morgan fingerprints (compounds, bits) of SMILES indexed by compound (Rogers & Hahn 2010)."""
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator
    except ImportError as error:
        fix = "pip install 'perturbgen[chem]'"
        raise MissingDependencyError("RDKit is not installed", fix=fix) from error
    if not smiles.index.is_unique:
        twice = smiles.index[smiles.index.duplicated()].unique()
        raise SchemaError(f"compounds named twice: {shorten(twice)}")
    given = [text if isinstance(text, str) else "" for text in smiles]
    # RDKit prints what it cannot read; the error below says it with the compound's name.
    with rdBase.BlockLogs():
        molecules = [Chem.MolFromSmiles(text) if text else None for text in given]
    bad = [name for name, molecule in zip(smiles.index, molecules, strict=True) if molecule is None]
    if bad:
        what = f"{len(bad)} compounds have no valid SMILES: {shorten(bad)}"
        raise SchemaError(what, fix="correct or drop them")
    # Radius 2 is what is called ECFP4.
    generator = GetMorganGenerator(radius=radius, fpSize=bits)
    rows = [generator.GetFingerprintAsNumPy(molecule) for molecule in molecules]
    table = pd.DataFrame(np.array(rows, np.uint8).reshape(-1, bits), index=smiles.index)
    return table.add_prefix("morgan_")


def read_smiles(path: Path) -> pd.Series:
    """SMILES by compound, from the columns sm_name or compound, and SMILES (in any case)."""
    table = read_frame(path).rename(columns=lambda name: str(name).lower())
    table = with_compound(table, path)
    require_columns(table.columns, ["compound", "smiles"], path)
    found: pd.Series = table.drop_duplicates("compound").set_index("compound")["smiles"].dropna()
    return found
