"""Which samples go into which fit, under which design, and which contrasts it answers.

What counts and samples must be before any statistics are done on them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.core.errors import ConfigError, CountsError, SchemaError, shorten, suggest
from perturbgen.de.design import Design, build_design

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """One fit: the positions of its samples, its design, and its contrasts.

    ``conditions`` are the labels of the contrasts, ``weights`` (contrasts, columns) what they are of the coefficients,
    ``counts`` how many samples each condition and its control have.
    """

    name: str
    rows: NDArray[np.intp]
    design: Design
    conditions: list[tuple[str, ...]]
    weights: NDArray[np.float64]
    replicates: NDArray[np.intp]


def plan_fits(
    obs: pd.DataFrame,
    *,
    design: str,
    group: str,
    control: str,
    by: str | None = None,
    joint: bool = False,
) -> list[Fit]:
    """The fits of an analysis: one, or one for each level of ``by`` unless they are fitted jointly."""
    groups = text_column(obs, group, "group")
    if joint and by is None:
        raise ConfigError(
            "joint=True needs by=", fix='by="cell_type" compares compounds within each cell type'
        )
    strata = text_column(obs, by, "by") if by else pd.Series("", index=obs.index)
    _require_control(groups, strata, group=group, control=control, by=by)
    if joint:
        return [_plan_joint(obs, design, groups, strata, control)]
    fits = []
    for level in level_order(strata):
        rows = np.flatnonzero((strata == level).to_numpy())
        if (groups.iloc[rows] == control).all():
            log.warning("%s %r holds nothing but the control: it has no contrast", by, level)
            continue
        fits.append(_plan_one(obs, design, groups, rows, control, (level,) if by else ()))
    if not fits:
        raise SchemaError(
            f"every sample is {control!r}: there is nothing to compare with the control"
        )
    return fits


def text_column(obs: pd.DataFrame, name: str | None, role: str) -> pd.Series:
    """A column of obs as text, without missing values; categories keep their order."""
    if name not in obs.columns:
        known = [str(c) for c in obs.columns]
        raise SchemaError(f"obs has no column {name!r} ({role})", fix=suggest(str(name), known))
    values = obs[name]
    if values.isna().any():
        raise SchemaError(
            f"{role} {name!r} is missing in {int(values.isna().sum())} samples: {shorten(obs.index[values.isna()])}",
            fix="fill the values in or drop those samples",
        )
    if isinstance(values.dtype, pd.CategoricalDtype):
        used = values.cat.remove_unused_categories()
        return used.cat.rename_categories([str(c) for c in used.cat.categories])
    return values.astype(str)


def level_order(values: pd.Series) -> list[str]:
    """The levels of a factor in R's order: that of the categories, otherwise by code point."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return [str(c) for c in values.cat.categories]
    return sorted(values.unique())


def _require_control(
    groups: pd.Series, strata: pd.Series, *, group: str, control: str, by: str | None
) -> None:
    """Every stratum must hold the control."""
    known = level_order(groups)
    if control not in known:
        raise SchemaError(
            f"no sample has {group} = {control!r} (the control)", fix=suggest(control, known)
        )
    lacking = [
        level
        for level in level_order(strata)
        if not ((strata == level) & (groups == control)).any()
    ]
    if lacking:
        raise SchemaError(
            f"the control {control!r} is missing in {by} {shorten(lacking)}",
            expected=f"samples of the control for every {by}",
            fix="drop those samples, or choose another control",
        )


def _plan_one(
    obs: pd.DataFrame,
    design: str,
    groups: pd.Series,
    rows: NDArray[np.intp],
    control: str,
    prefix: tuple[str, ...],
) -> Fit:
    """A fit in which every level is compared with the one control."""
    members = groups.iloc[rows]
    coded = build_design(design, obs.iloc[rows], members)
    sizes = members.value_counts()
    levels = [level for level in coded.levels if level != control]
    weights = np.array([coded.contrast(level, control) for level in levels])
    replicates = np.array([[sizes[level], sizes[control]] for level in levels])
    return Fit(
        "".join(prefix), rows, coded, [(*prefix, level) for level in levels], weights, replicates
    )


def _plan_joint(
    obs: pd.DataFrame, design: str, groups: pd.Series, strata: pd.Series, control: str
) -> Fit:
    """One fit whose groups are the combinations of ``by`` and ``group``; each is compared with its own control."""
    pairs = list(zip(strata.astype(str), groups.astype(str), strict=True))
    # R sorts the pasted names; the tuple breaks ties, so that two combinations that paste to one name stay apart
    order = sorted(set(pairs), key=lambda pair: (f"{pair[1]}_{pair[0]}", pair))
    code = {pair: i for i, pair in enumerate(order)}
    combined = pd.Series(
        pd.Categorical.from_codes(
            [code[p] for p in pairs], pd.Index([str(i) for i in range(len(order))])
        ),
        obs.index,
    )
    coded = build_design(design, obs, combined)
    sizes = np.bincount([code[p] for p in pairs])
    wanted: list[tuple[str, ...]] = [
        (stratum, level)
        for stratum in level_order(strata)
        for level in level_order(groups)
        if level != control and (stratum, level) in code
    ]
    weights = np.array([coded.contrast(str(code[s, g]), str(code[s, control])) for s, g in wanted])
    replicates = np.array([[sizes[code[s, g]], sizes[code[s, control]]] for s, g in wanted])
    return Fit("joint", np.arange(len(obs)), coded, wanted, weights, replicates)


def condition_frame(
    fits: Sequence[Fit], answered: NDArray[np.bool_], names: Sequence[str]
) -> pd.DataFrame:
    """What is known of every condition: its samples and its control's, and whether its contrast can be estimated."""
    labels = [label for fit in fits for label in fit.conditions]
    if len(names) > 1:
        index: pd.Index = pd.MultiIndex.from_tuples(labels, names=list(names))
    else:
        index = pd.Index([label[0] for label in labels], name=names[0])
    replicates = np.vstack([fit.replicates for fit in fits])
    frame = pd.DataFrame(replicates, index, columns=["n_samples", "n_control"])
    return frame.assign(single_replicate=frame["n_samples"] < 2, estimable=answered)


_Array = NDArray[np.float64]


def as_matrix(
    counts: AnnData | pd.DataFrame | Any, layer: str | None = None
) -> tuple[_Array, pd.Index, pd.Index]:
    """Counts as a dense float64 array (samples, genes) with the labels of both."""
    if isinstance(counts, pd.DataFrame):
        return _dense(counts.to_numpy()), counts.index, counts.columns
    if hasattr(counts, "obs_names"):
        if layer is not None and layer not in counts.layers:
            raise SchemaError(
                f"no layer {layer!r}",
                expected=f"one of {shorten(counts.layers)}",
                fix="check --layer",
            )
        return (
            _dense(counts.X if layer is None else counts.layers[layer]),
            counts.obs_names,
            counts.var_names,
        )
    values = _dense(counts)
    return values, pd.RangeIndex(len(values)), pd.RangeIndex(values.shape[1])


def _dense(values: Any) -> _Array:
    """An array or sparse matrix as a dense, row-major float64 array."""
    array = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    if array.ndim != 2:
        raise CountsError(f"counts have {array.ndim} dimensions", expected="samples x genes")
    try:
        return np.ascontiguousarray(array, dtype=np.float64)
    except (TypeError, ValueError):
        raise CountsError(
            "counts hold something that is not a number", expected="samples x genes of numbers"
        ) from None


def check_counts(
    values: _Array, samples: pd.Index, genes: pd.Index, *, allow_fractional: bool = False
) -> None:
    """Refuse what are not raw counts; name the first culprit."""
    if not values.size:
        raise CountsError(f"counts are empty: {values.shape[0]} samples x {values.shape[1]} genes")
    _fail_where(
        ~np.isfinite(values),
        values,
        samples,
        genes,
        "a missing or infinite value",
        "fill in or drop it",
    )
    _fail_where(values < 0, values, samples, genes, "a negative value", "pass the raw count matrix")
    fractional = values != np.rint(values)
    if allow_fractional and fractional.any():
        log.warning(
            "%.1f %% of the counts are not whole numbers; averages or noise-free means make p-values far too small",
            100 * fractional.mean(),
        )
    elif fractional.any():
        _fail_where(
            fractional,
            values,
            samples,
            genes,
            "a fraction",
            "draw counts instead of averaging them, or override with allow_fractional (--allow-fractional)",
        )
    empty = values.sum(axis=1) == 0
    if empty.any():
        raise CountsError(
            f"{int(empty.sum())} samples have no counts at all: {shorten(samples[empty])}",
            cause="a well without cells",
            fix="drop them before the analysis",
        )


def _fail_where(
    wrong: NDArray[np.bool_],
    values: _Array,
    samples: pd.Index,
    genes: pd.Index,
    what: str,
    fix: str,
) -> None:
    """An error that names the first place where ``wrong`` (samples, genes) holds."""
    if not wrong.any():
        return
    i, j = (int(k) for k in np.unravel_index(int(wrong.argmax()), wrong.shape))
    raise CountsError(
        f"counts hold {what}: sample {str(samples[i])!r} has {values[i, j]:g} in gene {str(genes[j])!r}",
        expected="raw counts (whole numbers, not negative)",
        cause="the matrix was normalised, averaged or log-transformed"
        if what == "a fraction"
        else None,
        fix=fix,
    )


def find_obs(counts: AnnData | pd.DataFrame, obs: pd.DataFrame | None) -> pd.DataFrame:
    """obs as given, or the AnnData's own."""
    if obs is not None:
        return obs
    if isinstance(counts, pd.DataFrame) or not hasattr(counts, "obs"):
        raise SchemaError(
            "counts come without obs", expected="an AnnData, or obs= with a row for each sample"
        )
    return counts.obs


def check_labels(samples: pd.Index, genes: pd.Index) -> None:
    """Labels must be unique, since everything is joined by them."""
    for labels, what in ((samples, "samples"), (genes, "genes")):
        if not labels.is_unique:
            repeated = labels[labels.duplicated()].unique()
            raise SchemaError(
                f"{len(repeated)} {what} occur more than once: {shorten(repeated)}",
                fix="obs_names_make_unique() or var_names_make_unique(), or drop the copies",
            )


def align_obs(obs: pd.DataFrame, samples: pd.Index) -> pd.DataFrame:
    """obs in the order of the counts, joined by label."""
    if not obs.index.is_unique:
        raise SchemaError(
            f"obs repeats samples: {shorten(obs.index[obs.index.duplicated()].unique())}"
        )
    absent = samples.difference(obs.index, sort=False)
    if len(absent):
        raise SchemaError(
            f"obs lacks {len(absent)} of the samples in the counts: {shorten(absent)}",
            cause="counts are genes x samples, or the two come from different files",
        )
    return obs.loc[samples]


def warn_duplicates(values: _Array, samples: pd.Index) -> None:
    """Say which samples hold the very same counts: copies are no replicates."""
    _, first, inverse = np.unique(
        np.column_stack([values.sum(axis=1), values @ np.arange(1, values.shape[1] + 1)]),
        axis=0,
        return_index=True,
        return_inverse=True,
    )
    original = first[inverse.ravel()]
    same = [i for i, j in enumerate(original) if i != j and np.array_equal(values[i], values[j])]
    if same:
        log.warning(
            "samples with the same counts as another one (copies are no replicates): %s",
            shorten(samples[same]),
        )
