"""Pairs of profiles: two tables of wells become one row a perturbation in each assay, joined by
label and dose.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.core.errors import InputError, SchemaError, shorten
from perturbgen.core.tables import read_frame, require_columns
from perturbgen.profiles import Profiles
from perturbgen.profiles.correct import ControlScaler
from perturbgen.profiles.crossmodal import PairedProfiles
from perturbgen.retrieval import percent_replicating

log = logging.getLogger(__name__)
_LABELS: Final = "Metadata_"
_SAME_DOSE: Final = 1.2  # doses whose ratio is smaller are one
_OURS: Final = ("perturbation", "compound", "dose", "moa")


@dataclass(frozen=True)
class Columns:
    """Where a table says what; '' where it does not. ``control`` is a condition such as
    ``pert_type=ctl_vehicle``.
    """

    label: str
    dose: str = ""
    plate: str = ""
    moa: str = ""
    control: str = ""
    features: str = (
        ""  # a regular expression; '' takes numbers that are no Metadata_ and none of the above
    )


def read_wells(path: str | Path, columns: Columns) -> Profiles:
    """A csv(.gz) or parquet of profiles with ``compound``, ``dose`` and ``moa`` in its labels;
    controls are excluded.

    With a control, features are standardised by it in each plate first (in all plates where no
    column says which).
    """
    table = _read_table(Path(path), columns)
    named = [name for name in (columns.label, columns.dose, columns.plate, columns.moa) if name]
    require_columns(table.columns, named, path)
    features = _feature_names(table, columns, named, path)
    profiles = Profiles(
        table[features].to_numpy(np.float64),
        table.drop(columns=features),
        pd.Index(features),
        str(path),
    )
    profiles = profiles.tidy(nan="error" if columns.features else "drop-features")
    if columns.control:
        profiles = _standardised(profiles, columns)
    return replace(profiles, meta=_labelled(profiles.meta, columns, path))


def _read_table(path: Path, columns: Columns) -> pd.DataFrame:
    """The rows as they are; labels are text."""
    return read_frame(
        path, text=[name for name in (columns.label, columns.plate, columns.moa) if name]
    )


def _feature_names(
    table: pd.DataFrame, columns: Columns, named: Sequence[str], path: str | Path
) -> list[str]:
    """The columns that are measured."""
    numeric = [
        str(name)
        for name in table
        if pd.api.types.is_numeric_dtype(table[name]) and not _is_flag(table[name])
    ]
    if columns.features:
        try:
            pattern = re.compile(columns.features)
        except re.error as error:
            raise InputError(
                f"features {columns.features!r}: {error}", expected="a regular expression"
            ) from None
        names = [name for name in numeric if pattern.search(name)]
    else:
        names = [name for name in numeric if not name.startswith(_LABELS) and name not in named]
    if len(names) < 2:
        raise SchemaError(
            f"{path} has {len(names)} columns of features",
            expected="two or more columns of numbers",
            cause=f"no number column matches {columns.features!r}"
            if columns.features
            else "numbers stored as text",
            fix=f"its columns are {shorten(table.columns)}",
        )
    log.info("%s: %d rows, %d features: %s", path, len(table), len(names), shorten(names, 3))
    return names


def _is_flag(values: pd.Series) -> bool:
    """True and False are labels."""
    return bool(pd.api.types.is_bool_dtype(values))


def _standardised(profiles: Profiles, columns: Columns) -> Profiles:
    """By the controls of each plate; the controls themselves are excluded."""
    control = profiles.chosen(columns.control, profiles.source)
    scaler = ControlScaler([columns.plate] if columns.plate else [])
    values = scaler.fit_transform(profiles.values, profiles.meta, control=control)
    return profiles.with_values(values).where(~control)


def _labelled(meta: pd.DataFrame, columns: Columns, path: str | Path) -> pd.DataFrame:
    """Our columns; a row without a label is refused."""
    found = pd.DataFrame({"compound": meta[columns.label].astype("string")})
    if found["compound"].isna().any():
        raise SchemaError(
            f"{path}: {columns.label!r} is missing in {int(found['compound'].isna().sum())} rows",
            expected="a label in every row",
            cause="control wells without a name",
            fix="name the controls by --control, which leaves them out, or drop these rows",
        )
    found["dose"] = pd.to_numeric(meta[columns.dose], errors="coerce") if columns.dose else 1.0
    if found["dose"].isna().any():
        raise SchemaError(
            f"{path}: {columns.dose!r} is no number in some rows", expected="a dose in every row"
        )
    found["moa"] = meta[columns.moa] if columns.moa else None
    return found.reset_index(drop=True)


def pair(
    first: Profiles, second: Profiles, *, null_groups: int, rng: np.random.Generator
) -> PairedProfiles:
    """The perturbations (compound and dose) that both assays measured, replicates averaged.

    ``stratum`` says in how many assays a perturbation's replicates agree: both, one or neither (a
    median pairwise correlation above 95 % of random groups); 'unknown' where an assay has one row
    of it only.
    """
    sides = [_named(first, first), _named(second, first)]
    means = [
        pd.DataFrame(side.values).groupby(side.meta["perturbation"].to_numpy()).mean()
        for side in sides
    ]
    shared = means[0].index[means[0].index.isin(means[1].index)]
    if len(shared) < 10:
        raise SchemaError(
            f"the assays share {len(shared)} perturbations (compound and dose)",
            expected="at least ten",
            cause="labels of two vocabularies, or doses of two units",
            fix=f"first: {shorten(means[0].index, 3)}; second: {shorten(means[1].index, 3)}",
        )
    for name, table in zip(("first", "second"), means, strict=True):
        log.info("%d perturbations of the %s assay have no partner", len(table) - len(shared), name)
    meta = sides[0].meta.drop_duplicates("perturbation").set_index("perturbation").loc[shared]
    meta["moa"] = meta["moa"].fillna(
        sides[1].meta.drop_duplicates("perturbation").set_index("perturbation")["moa"]
    )
    agreed = [_agreement(side, null_groups, rng) for side in sides]
    return as_pairs(*means, meta.assign(stratum=strata(agreed[0], agreed[1], shared)))


def as_pairs(first: pd.DataFrame, second: pd.DataFrame, meta: pd.DataFrame) -> PairedProfiles:
    """Two tables of averages (perturbations, features) by the labels that are in both."""
    sides = (table.loc[meta.index] for table in (first, second))
    return PairedProfiles(*(Profiles(side.to_numpy(), meta, side.columns) for side in sides))


def _named(profiles: Profiles, reference: Profiles) -> Profiles:
    """With ``perturbation``, compound @ dose, in the doses of the reference where they are nearly
    the same.
    """
    meta = profiles.meta
    doses = nearest_doses(
        meta["dose"].to_numpy(float), np.unique(reference.meta["dose"].to_numpy(float))
    )
    name = meta["compound"].astype(str) + [f" @ {dose:.3g}" for dose in doses]
    return replace(profiles, meta=meta.assign(dose=doses, perturbation=name))


def nearest_doses(doses: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Each dose, or the known one that is nearest in ratio if that is under 1.2: 3.33 and 3.3333
    are one dose.
    """
    if not (known > 0).all() or not (doses > 0).all():
        return doses
    distance = np.abs(np.log(doses[:, None] / known))
    best = distance.argmin(axis=1)
    return np.where(distance.min(axis=1) < np.log(_SAME_DOSE), known[best], doses)


def _agreement(profiles: Profiles, null_groups: int, rng: np.random.Generator) -> pd.Series:
    """Whether each perturbation's replicates agree; those with one row are absent."""
    repeated = profiles.where(profiles.meta["perturbation"].duplicated(keep=False))
    if not len(repeated):
        return pd.Series(dtype=bool)
    table = percent_replicating(
        repeated.values, repeated.meta, same="perturbation", null_groups=null_groups, rng=rng
    )
    return table["passes"]


def strata(first: pd.Series, second: pd.Series, shared: pd.Index) -> pd.Series:
    """In how many assays each perturbation is reproducible, in words."""
    both = pd.DataFrame(
        {"first": first.reindex(shared), "second": second.reindex(shared)}, index=shared
    )
    count = both.astype("Float64").sum(axis=1, skipna=False)
    return count.map({0.0: "neither", 1.0: "one", 2.0: "both"}).fillna("unknown").astype(object)
