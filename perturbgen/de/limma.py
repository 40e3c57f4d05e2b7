"""``limma_table``: differential expression of every level of a factor against a control.

The two published ways to make a DE table of the Open Problems experiment.

``kaggle`` is the competition's (614 rows x 18,211 genes): one fit for each cell type, no gene filter. ``op3`` is the
living benchmark's: one joint fit of genes expressed in every cell type, robust moderation, values within +-4. Both use
limma's contrast approximation, whose p-values depend on the order of the levels; so that order is theirs, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.core.console import progress
from perturbgen.core.errors import ConfigError, shorten, suggest
from perturbgen.core.labels import VEHICLE
from perturbgen.core.system import spread
from perturbgen.data.schema import ORGANISERS_PLATES
from perturbgen.de.contrasts import ContrastKind, answerable
from perturbgen.de.design import Design
from perturbgen.de.native import FitResult, Method, Tick, fit_native
from perturbgen.de.normalise import GeneFilter, Inputs, gene_masks
from perturbgen.de.plan import (
    Fit,
    align_obs,
    as_matrix,
    check_counts,
    check_labels,
    condition_frame,
    find_obs,
    plan_fits,
    warn_duplicates,
)
from perturbgen.de.table import DETable, adjust_bh
from perturbgen.de.tails import EPS_LOG10_P, LOG_10

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.de.voom import MeanVariance

log = logging.getLogger(__name__)

_Array = NDArray[np.float64]
_Backend = Literal["native", "r"]


def limma_table(
    counts: AnnData | pd.DataFrame,
    obs: pd.DataFrame | None = None,
    *,
    design: str,
    group: str,
    control: str,
    by: str | None = None,
    joint: bool = False,
    backend: _Backend = "native",
    contrasts: ContrastKind = "exact",
    robust: bool = False,
    trend: bool = False,
    normalise: Literal["tmm", "none"] = "tmm",
    span: float | Literal["adaptive"] = 0.5,
    gene_filter: GeneFilter = None,
    zero_p: Literal["eps"] | None = None,
    adjust: Literal["contrast", "joint"] = "contrast",
    allow_fractional: bool = False,
    layer: str | None = None,
    device: str = "cpu",
) -> DETable:
    """limma-voom: every level of ``group`` against ``control``, within each level of ``by``.

    Parameters
    ----------
    counts
        raw counts, samples x genes; an AnnData brings its own obs, a DataFrame needs ``obs``
    design
        an R formula in which ``{group}`` is the compared factor, such as ``"~0 + {group} + donor + plate"``
    by, joint
        a column whose levels are fitted apart, or with ``joint`` in a single fit of all combinations
    backend
        ``"native"`` needs no R; ``"r"`` runs limma and edgeR through rpy2 and gives the same numbers
    contrasts
        ``"exact"`` standard errors, or ``"limma"`` for the approximation of ``contrasts.fit``
    span
        of voom's lowess: 0.5, or ``"adaptive"`` as limma has chosen it since 3.66
    gene_filter
        ``"filterByExpr"`` in each fit, ``"intersection"`` of it over the levels of ``by``, or names of genes
    zero_p
        ``"eps"`` puts 2.2e-16 where p underflows to zero, as the competition's organisers did
    adjust
        Benjamini-Hochberg within each contrast, or over all contrasts jointly

    """
    method = Method(contrasts, robust, trend, normalise, span, device)
    _check_options(method, backend=backend, zero_p=zero_p, adjust=adjust)
    data = _prepare(counts, obs, layer=layer, allow_fractional=allow_fractional)
    fits = plan_fits(data.obs, design=design, group=group, control=control, by=by, joint=joint)
    masks = gene_masks(data, fits, gene_filter, design=design, group=group, by=by)
    answered = np.concatenate([answerable(f.design, f.weights, contrasts) for f in fits])
    conditions = condition_frame(fits, answered, [by, group] if by else [group])
    _report(conditions)
    tables, trends = _run_fits(data, fits, masks, answered, method, _fit_function(backend))
    info = {
        "design": design,
        "group": group,
        "control": control,
        "by": by,
        "joint": joint,
        "backend": backend,
    }
    table = _assemble(
        tables,
        conditions,
        data.genes,
        zero_p=zero_p,
        adjust=adjust,
        info={**info, **asdict(method)},
    )
    return replace(table, mean_variance=trends)


def _check_options(method: Method, *, backend: str, zero_p: str | None, adjust: str) -> None:
    """Refuse unknown words and impossible numbers."""
    allowed: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "backend": (backend, ("native", "r")),
        "contrasts": (method.contrasts, ("exact", "limma")),
        "normalise": (method.normalise, ("tmm", "none")),
        "zero_p": (zero_p, ("eps", None)),
        "adjust": (adjust, ("contrast", "joint")),
    }
    for name, (value, known) in allowed.items():
        if value not in known:
            raise ConfigError(
                f"{name}={value!r} is unknown", expected=" or ".join(map(repr, known))
            )
    if method.span != "adaptive" and not (
        isinstance(method.span, (int, float)) and 0 < method.span <= 1
    ):
        raise ConfigError(
            f"span={method.span!r} is not possible", expected='a number in (0, 1], or "adaptive"'
        )
    if method.device.partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"device={method.device!r} is unknown", expected="'cpu' or 'cuda'")
    if method.device != "cpu" and backend == "r":
        raise ConfigError(
            f"R does not compute on {method.device}", fix='device="cpu", or backend="native"'
        )


def _prepare(
    counts: AnnData | pd.DataFrame,
    obs: pd.DataFrame | None,
    *,
    layer: str | None,
    allow_fractional: bool,
) -> Inputs:
    """Counts and obs, checked and in one order."""
    values, samples, genes = as_matrix(counts, layer)
    check_labels(samples, genes)
    aligned = align_obs(find_obs(counts, obs), samples)
    check_counts(values, samples, genes, allow_fractional=allow_fractional)
    warn_duplicates(values, samples)
    return Inputs(values, genes, aligned)


def _report(conditions: pd.DataFrame) -> None:
    """Name the contrasts that have no answer, and those that rest on one sample."""
    lost = conditions.index[~conditions["estimable"]]
    if len(lost):
        log.warning(
            "%d contrasts are not estimable and NA in the table: %s",
            len(lost),
            shorten(map(_show_label, lost)),
        )
    single = conditions.index[conditions["single_replicate"]]
    if len(single):
        log.info(
            "%d conditions have one replicate: %s", len(single), shorten(map(_show_label, single))
        )


def _show_label(label: Any) -> str:
    """A condition's label in one word."""
    return " | ".join(label) if isinstance(label, tuple) else str(label)


_FitFunction = Callable[[_Array, Design, _Array, Method, Tick | None], FitResult]


def _fit_function(backend: _Backend) -> _FitFunction:
    """What makes a fit; R is looked for only when it is asked for."""
    if backend == "native":
        return fit_native
    from perturbgen.de.r import fit_r

    return fit_r


def _run_fits(
    data: Inputs,
    fits: Sequence[Fit],
    masks: Sequence[NDArray[np.bool_]],
    answered: NDArray[np.bool_],
    method: Method,
    fit_one: _FitFunction,
) -> tuple[dict[str, _Array], dict[str, MeanVariance]]:
    """Every statistic as (conditions, genes), NaN where there is none, and the trend of each fit."""
    trends = {}
    shape = (len(answered), len(data.genes))
    tables = {
        name: np.full(shape, np.nan) for name in ("logfc", "ave_expr", "t", "se", "df", "log_p")
    }
    start = 0
    with progress("differential expression", sum(int(mask.sum()) for mask in masks)) as tick:
        for fit, mask in zip(fits, masks, strict=True):
            possible = answered[start : start + len(fit.weights)]
            rows = start + np.flatnonzero(possible)
            start += len(fit.weights)
            if not len(rows):
                continue
            whole = mask.all()
            values = data.values[fit.rows] if whole else data.values[np.ix_(fit.rows, mask)]
            result = fit_one(values, fit.design, fit.weights[possible], method, tick)
            _store(tables, rows, slice(None) if whole else np.flatnonzero(mask), result)
            trends[fit.name] = result.mean_variance
    return tables, trends


def _store(
    tables: dict[str, _Array], rows: NDArray[np.intp], genes: Any, result: FitResult
) -> None:
    """Put one fit's statistics in their place."""
    parts = {
        "logfc": result.effects,
        "se": result.se,
        "t": result.t,
        "log_p": result.log_p,
        "df": result.df_total,
        "ave_expr": result.ave_expr,
    }
    for name, values in parts.items():
        for i, row in enumerate(rows):
            tables[name][row, genes] = values[i] if values.ndim == 2 else values


def _assemble(
    tables: dict[str, _Array],
    conditions: pd.DataFrame,
    genes: pd.Index,
    *,
    zero_p: str | None,
    adjust: str,
    info: dict[str, Any],
) -> DETable:
    """The labelled table, with adjusted p."""
    log_p = tables.pop("log_p")
    adj_p = (
        adjust_bh(log_p.ravel()).reshape(log_p.shape) if adjust == "joint" else _adjust_rows(log_p)
    )
    log10_p = np.divide(log_p, LOG_10, out=log_p)
    if zero_p == "eps":
        log10_p[10.0**log10_p == 0] = EPS_LOG10_P
    arrays = {**tables, "log10_p": log10_p, "adj_p": adj_p}
    frames = {
        name: pd.DataFrame(values, conditions.index, genes, copy=False)
        for name, values in arrays.items()
    }
    return DETable(**frames, conditions=conditions, info=info)  # type: ignore[arg-type]


def _adjust_rows(log_p: _Array) -> _Array:
    """Benjamini-Hochberg within each row of (contrasts, genes)."""
    adjusted = np.empty_like(log_p)

    def fill(rows: range) -> None:
        for i in rows:
            adjusted[i] = adjust_bh(log_p[i])

    spread(fill, len(log_p), step=16)
    return adjusted


FLAVOURS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "kaggle": {
            "design": "~0 + {group} + donor + plate + row",
            "by": "cell_type",
            "contrasts": "limma",
            "zero_p": "eps",
        },
        "op3": {
            "design": "~0 + {group} + plate",
            "by": "cell_type",
            "joint": True,
            "contrasts": "limma",
            "robust": True,
            "gene_filter": "intersection",
            "adjust": "joint",
            "zero_p": "eps",
        },
    }
)
CLIP = {"kaggle": None, "op3": 4.0}


def flavour_table(
    counts: AnnData | pd.DataFrame,
    obs: pd.DataFrame | None = None,
    *,
    flavour: str,
    group: str = "compound",
    control: str = VEHICLE,
    rename_plates: bool = True,
    **options: Any,
) -> DETable:
    """A DE table in a published flavour; ``options`` are those of ``limma_table`` and override the flavour's.

    For ``kaggle``, compounds are ordered as the organisers' integer codes were, and the released plate names are
    changed back into those of the organisers' own analysis, unless ``rename_plates`` is off.
    """
    if flavour not in FLAVOURS:
        raise ConfigError(f"no flavour {flavour!r}", fix=suggest(flavour, FLAVOURS))
    samples = find_obs(counts, obs)
    if flavour == "kaggle":
        samples = _organisers_obs(samples, group=group, rename_plates=rename_plates)
    table = limma_table(
        counts, samples, group=group, control=control, **{**FLAVOURS[flavour], **options}
    )
    return replace(table, clip=CLIP[flavour], info={**table.info, "flavour": flavour})


def _organisers_obs(obs: pd.DataFrame, *, group: str, rename_plates: bool) -> pd.DataFrame:
    """obs with the plate names and the order of compounds of the organisers' analysis."""
    obs = obs.copy()
    if group in obs and not obs[group].isna().any():
        obs[group] = _order_of_appearance(obs[group].astype(str))
    if rename_plates and "plate" in obs:
        plates = obs["plate"].astype(str)
        if set(plates) <= set(ORGANISERS_PLATES):
            obs["plate"] = plates.map(ORGANISERS_PLATES)
        else:
            log.info("these are not the competition's six plates: their names are left as they are")
    return obs


def _order_of_appearance(names: pd.Series) -> pd.Series:
    """Names as categories, ordered as R orders the text of their numbers 0, 1, 2, ... by first appearance."""
    numbers = {name: str(i) for i, name in enumerate(dict.fromkeys(names))}
    return names.astype(pd.CategoricalDtype(sorted(numbers, key=lambda name: numbers[name])))
