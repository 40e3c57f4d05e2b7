"""From a file to the stores of cells that a run is trained on, split and encoded."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import CountsError, SchemaError, shorten
from perturbgen.core.tables import read_frame, require_columns, require_unique
from perturbgen.data import CountStore, CovariateEncoder, complete, parts_of_label, sample_problem
from perturbgen.train.feeds import CellFeed
from perturbgen.train.settings import CellData, RunSettings, _ConditionSettings

log = logging.getLogger(__name__)

_MOST_PAIRED: Final = 150  # single perturbations, whose pairs are all given a place
_VALIDATION: Final = 0.1  # share of the cells that no split file names


@dataclass(frozen=True)
class Cells:
    """The cells of a run; ``descriptors`` has for some conditions a row per category."""

    train: CountStore
    validation: CountStore
    encoder: CovariateEncoder
    descriptors: Mapping[str, pd.DataFrame]

    @classmethod
    def of(cls, store: CountStore, settings: RunSettings) -> Cells:
        """Cells, split and encoded as the settings say."""
        path, conditions = settings.data.path, settings.conditions
        # told now, and not after hours of training
        if problem := sample_problem(store.obs):
            log.warning(
                "%s: generate and predict will refuse these cells. A sample (plate and well, or "
                "what a column map calls sample) has one compound, donor and library",
                problem,
            )
        if not (len(store) and store.n_genes):
            raise SchemaError(f"{path} is empty: {len(store)} cells x {store.n_genes} genes")
        require_unique(store.obs.index, "cell", path)
        require_unique(store.var_names, "gene", path)
        descriptors = {
            name: _read_descriptors(condition.descriptors)
            for name, condition in conditions.items()
            if condition.descriptors
        }
        for name, condition in conditions.items():
            if condition.encoding == "combination":
                named = complete(store.obs, name).astype(str).unique()
                descriptors[name] = _combinations(named, condition.control)
        # Fitted on all cells of the file: a category that only validation or test cells have keeps
        # its place, though nothing is learned of it.
        encoder = _fit_encoder(store.obs, conditions, descriptors)
        store = store.with_covariates(encoder)
        train, validation = _split_cells(store.obs, settings.data, settings.seed)
        cells = cls(store.subset(train), store.subset(validation), encoder, descriptors)
        cls.refuse_empty(cells.train, cells.validation)
        for name, absent in encoder.absent(cells.train.obs).items():
            if name not in descriptors:
                # a prediction for them would look like any other
                untrained = "no training cell has %s %s: its weights stay as they were drawn"
                log.warning(untrained, name, shorten(absent))
        return cells

    @staticmethod
    def refuse_empty(*stores: CountStore) -> None:
        """A cell without counts has no composition to model."""
        from perturbgen.models import sizes

        empty = []
        for store in stores:
            totals = [sizes(batch.counts, "total") for batch in CellFeed(store, 4096).once()]
            none = [np.zeros(0, bool), *((total == 0).cpu().numpy() for total in totals)]
            empty += list(store.obs.index[np.concatenate(none)])
        if empty:
            raise CountsError(
                f"{len(empty)} cells have no counts at all: {shorten(empty)}",
                expected="cells with at least one count",
                fix="drop them",
            )


def _fit_encoder(
    obs: pd.DataFrame,
    conditions: Mapping[str, _ConditionSettings],
    descriptors: Mapping[str, pd.DataFrame],
) -> CovariateEncoder:
    """The categories of every condition: all that were seen, or all that are described."""
    unknown = [name for name, condition in conditions.items() if condition.unknown]
    encoder = CovariateEncoder.fit(obs, list(conditions), unknown=unknown)
    categories = dict(encoder.categories)
    for name, table in descriptors.items():
        missing = [value for value in categories[name] if value not in table.index]
        if missing:
            raise SchemaError(
                f"condition {name!r}: no descriptors for {shorten(missing)}",
                fix="add rows for them",
            )
        categories[name] = tuple(sorted(table.index))
    return CovariateEncoder(categories, encoder.scales, encoder.unknown)


def _combinations(labels: Iterable[str], control: str | None) -> pd.DataFrame:
    """A row for every label, 1 for each of its parts (``A+B``), and for pairs nobody measured."""
    labels = sorted(labels)
    parts = {label: parts_of_label(label, control) for label in labels}
    names = sorted({part for own in parts.values() for part in own if part != control})
    single = [name for name in names if name in parts or f"{name}+{control}" in parts]
    if len(single) <= _MOST_PAIRED and len(single) < len(labels):  # some are measured as pairs
        measured = {frozenset(own) for own in parts.values()}
        pairs = [pair for pair in combinations(single, 2) if frozenset(pair) not in measured]
        parts |= {"+".join(pair): list(pair) for pair in pairs}
    rows = [[float(name in own) for name in names] for own in parts.values()]
    return pd.DataFrame(rows, index=list(parts), columns=names).sort_index()


def _read_descriptors(path: Path) -> pd.DataFrame:
    """A row per category, named by the first column: numbers, or fingerprints of its SMILES."""
    from perturbgen.data import morgan_fingerprints

    table = read_frame(path)
    if not isinstance(table.index, pd.RangeIndex):
        table = table.reset_index()
    table = table.set_index(table.columns[0])
    table.index = table.index.astype(str)
    if not table.index.is_unique:
        raise SchemaError(
            f"{path} describes {shorten(table.index[table.index.duplicated()].unique())} twice"
        )
    if "smiles" in table:
        return morgan_fingerprints(table["smiles"])
    numbers = table.select_dtypes("number")
    if numbers.empty or not np.isfinite(numbers.to_numpy()).all():
        raise SchemaError(
            f"{path} has no numeric columns, or some that are not finite", expected="finite numbers"
        )
    return numbers


def _split_cells(obs: pd.DataFrame, data: CellData, seed: int) -> tuple[pd.Index, pd.Index]:
    """Names of the training and of the validation cells."""
    from perturbgen.data import Split

    share = _VALIDATION if data.validation is None else data.validation
    if data.split is not None:
        parts = parts_of(obs, data.split)
        if data.validation and not (parts == "validation").any():
            parts = _with_validation(parts, data.validation, seed)
    elif share == 0:
        return obs.index, obs.index[:0]
    else:
        split = Split.random_cells(obs, rng=np.random.default_rng(seed), fraction=share)
        require_unique(split.parts.index, "row", "the split")
        parts = split.parts.reindex(obs.index.astype(str)).set_axis(obs.index)
    train = obs.index[parts == "train"]
    if not len(train):
        named, cause = f"the split {data.split}", "the split was made for other data"
        if data.split is None:
            named = f"data.validation = {share:g}"
            cause = "so few cells that all of them are withheld"
        raise SchemaError(f"{named} puts none of the {len(obs):,} cells into 'train'", cause=cause)
    return train, obs.index[parts == "validation"]


def parts_of(obs: pd.DataFrame, path: Path) -> pd.Series:
    """The part of every cell (cells,) by a split file of cells or of conditions."""
    from perturbgen.data import Split

    split = Split.read(path)
    require_unique(split.parts.index, "row", path)
    if split.parts.index.nlevels > 1:  # it names conditions, not cells
        columns = [str(name) for name in split.parts.index.names]
        require_columns(obs.columns, columns, f"obs, which the split {path} is joined by,")
        keys: pd.Index = pd.MultiIndex.from_frame(obs[columns].astype(str))
    else:
        keys = obs.index.astype(str)
    return split.parts.reindex(keys).set_axis(obs.index)


def _with_validation(parts: pd.Series, share: float, seed: int) -> pd.Series:
    """The parts, with a share of the training cells for validation."""
    train = np.flatnonzero(parts == "train")
    chosen = np.random.default_rng(seed).permutation(train)[: round(share * len(train))]
    parts = parts.copy()
    parts.iloc[chosen] = "validation"
    return parts
