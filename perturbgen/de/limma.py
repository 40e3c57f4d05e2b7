"""``limma_table``: differential expression of every level of a factor against a control.

``flavour_table`` makes it in one of the two published ways of the Open Problems experiment.
``kaggle`` is the competition's (614 rows x 18,211 genes): one fit for each cell type, no gene
filter. ``op3`` is the living benchmark's: one joint fit of genes expressed in every cell type,
robust moderation, values within +-4. Both use limma's contrast approximation, whose p-values depend
on the order of the levels; so that order is theirs, too.
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
from scipy.stats import false_discovery_control

from perturbgen.core.console import progress
from perturbgen.core.errors import ConfigError, shorten, suggest
from perturbgen.core.system import spread
from perturbgen.core.tables import VEHICLE
from perturbgen.data import ORGANISERS_PLATES
from perturbgen.de.counts import Inputs
from perturbgen.de.native import FitMethod, FitResult, fit_native
from perturbgen.de.plan import Fit, Question
from perturbgen.de.table import DETable

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.de.voom import MeanVariance

log = logging.getLogger(__name__)

_Array = NDArray[np.float64]
_LOG_10 = np.log(10.0)
# the organisers' stand-in for p = 0: -15.65
_EPS_LOG10_P = float(np.log10(np.finfo(np.float64).eps))


def limma_table(
    counts: AnnData | pd.DataFrame,
    obs: pd.DataFrame | None = None,
    *,
    design: str,
    group: str,
    control: str,
    by: str | None = None,
    joint: bool = False,
    backend: Literal["native", "r"] = "native",
    contrasts: Literal["exact", "limma"] = "exact",
    robust: bool = False,
    trend: bool = False,
    normalise: Literal["tmm", "tmmwsp", "rle", "upperquartile", "none"] = "tmm",
    span: float | Literal["adaptive"] = 0.5,
    gene_filter: Literal["filterByExpr", "intersection"] | Sequence[str] | None = None,
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
        an R formula in which ``{group}`` is the compared factor, such as ``"~0 + {group} + donor"``
    group, control
        the compared column of obs, and the level that every other one is compared with
    by, joint
        a column whose levels are fitted apart, or with ``joint`` in a single fit of all
        combinations
    backend
        ``"native"`` needs no R; ``"r"`` runs limma and edgeR through rpy2, for the same numbers
    contrasts
        ``"exact"`` standard errors, or ``"limma"`` for the approximation of ``contrasts.fit``
    robust, trend
        moderation that a few outlying genes cannot distort, or whose prior follows the average
        expression, as the options of limma's ``eBayes``
    normalise
        library sizes scaled by ``"tmm"``, ``"tmmwsp"``, ``"rle"`` or ``"upperquartile"`` (see
        ``norm_factors``), or as they are
    span
        of voom's lowess: 0.5, or ``"adaptive"`` as limma has chosen it since 3.66
    gene_filter
        ``"filterByExpr"`` in each fit, ``"intersection"`` of it over the levels of ``by``, or names
        of genes
    zero_p
        ``"eps"`` puts 2.2e-16 where p underflows to zero, as the competition's organisers did
    adjust
        Benjamini-Hochberg within each contrast, or over all contrasts jointly
    allow_fractional
        whether counts that are not whole numbers are taken
    layer
        where an AnnData has the counts, if not in X
    device
        where the native backend fits: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``

    """
    method = FitMethod(contrasts, robust, trend, normalise, span, device)
    _check_options(method, backend=backend, zero_p=zero_p, adjust=adjust)
    data = Inputs.of(counts, obs, layer=layer, allow_fractional=allow_fractional)
    asked = Question(design, group, control, by, joint)
    fits = asked.filtered(asked.fits(data.obs), data, gene_filter)
    answered = np.concatenate([fit.answerable(contrasts) for fit in fits])
    names = [by, group] if by else [group]
    conditions = _condition_frame(fits, answered, names)
    conditions = _with_cells(conditions, data.obs, names)
    tables, trends = _run_fits(data, fits, answered, method, backend)

    # in place from here on: at 614 conditions x 18,211 genes each statistic is 90 MB
    log_p = tables.pop("log_p")
    tables["adj_p"] = _adjust(log_p, jointly=adjust == "joint")
    tables["log10_p"] = np.divide(log_p, _LOG_10, out=log_p)
    if zero_p == "eps":
        tables["log10_p"][10.0 ** tables["log10_p"] == 0] = _EPS_LOG10_P
    frames: dict[str, Any] = {
        name: pd.DataFrame(values, conditions.index, data.genes, copy=False)
        for name, values in tables.items()
    }
    info = {**asdict(asked), "backend": backend, **asdict(method)}
    return DETable(**frames, conditions=conditions, info=info, mean_variance=trends)


def _check_options(method: FitMethod, *, backend: str, zero_p: str | None, adjust: str) -> None:
    """Refuse unknown words and impossible numbers."""
    allowed: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "backend": (backend, ("native", "r")),
        "zero_p": (zero_p, ("eps", None)),
        "adjust": (adjust, ("contrast", "joint")),
    }
    for name, (value, known) in allowed.items():
        if value not in known:
            words = " or ".join(map(repr, known))
            raise ConfigError(f"{name}={value!r} is unknown", expected=words)
    method.require_known()
    if method.device != "cpu" and backend == "r":
        fix = 'device="cpu", or backend="native"'
        raise ConfigError(f"R does not compute on {method.device}", fix=fix)


def _condition_frame(
    fits: Sequence[Fit], answered: NDArray[np.bool_], names: Sequence[str]
) -> pd.DataFrame:
    """Each condition's samples and its control's, and whether its contrast can be estimated."""
    labels = [label for fit in fits for label in fit.conditions]
    if len(names) > 1:
        index: pd.Index = pd.MultiIndex.from_tuples(labels, names=list(names))
    else:
        index = pd.Index([label[0] for label in labels], name=names[0])
    replicates = np.vstack([fit.replicates for fit in fits])
    frame = pd.DataFrame(replicates, index, columns=["n_samples", "n_control"])
    frame = frame.assign(single_replicate=frame["n_samples"] < 2, estimable=answered)

    shown = pd.Series([" | ".join(label) for label in labels], index)
    lost, single = shown[~frame["estimable"]], shown[frame["single_replicate"]]
    if len(lost):
        message = "%d contrasts are not estimable and NA in the table: %s"
        log.warning(message, len(lost), shorten(lost))
    if len(single):
        log.info("%d conditions have one replicate: %s", len(single), shorten(single))
    return frame


def _with_cells(frame: pd.DataFrame, obs: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Also how many cells and wells each condition has, where obs says."""
    counted: dict[str, pd.Series] = {}
    labels = [obs[name].astype(str) for name in names]
    if "n_cells" in obs:
        counted["n_cells"] = obs["n_cells"].groupby(labels, observed=True).sum()
    places = [obs[name].astype(str) for name in ("plate", "well") if name in obs]
    if "well" in obs:
        wells = pd.Series(list(zip(*places, strict=True)), obs.index)
        counted["n_wells"] = wells.groupby(labels, observed=True).nunique()
    text = frame.index.map(lambda key: tuple(map(str, key)) if isinstance(key, tuple) else str(key))
    for name, values in counted.items():
        frame = frame.assign(**{name: values.reindex(text).fillna(0).astype(int).to_numpy()})
    return frame


def _run_fits(
    data: Inputs, fits: Sequence[Fit], answered: NDArray[np.bool_], method: FitMethod, backend: str
) -> tuple[dict[str, _Array], dict[str, MeanVariance]]:
    """Every statistic as (conditions, genes), NaN where not tested, and each fit's trend."""
    run: Callable[..., FitResult] = fit_native
    if backend == "r":  # R is looked for only when it is asked for
        from perturbgen.de.r import fit_r

        run = fit_r

    trends = {}
    names = {name: name for name in ("ave_expr", "t", "se", "log_p")}
    names |= {"logfc": "effects", "df": "df_total"}
    tables = {name: np.full((len(answered), len(data.genes)), np.nan) for name in names}
    work = sum(len(data.genes) if fit.genes is None else int(fit.genes.sum()) for fit in fits)
    start = 0
    with progress("differential expression", work) as tick:
        for fit in fits:
            possible = answered[start : start + len(fit.weights)]
            rows = start + np.flatnonzero(possible)
            start += len(fit.weights)
            if not len(rows):
                continue
            genes: Any = slice(None) if fit.genes is None else np.flatnonzero(fit.genes)
            taken = fit.rows if fit.genes is None else np.ix_(fit.rows, genes)
            result = run(data.values[taken], fit.design, fit.weights[possible], method, tick)
            for name, attribute in names.items():
                # (contrasts, genes), or (genes,) for all of them
                found = np.broadcast_to(getattr(result, attribute), result.t.shape)
                for row, values in zip(rows, found, strict=True):
                    tables[name][row, genes] = values
            trends[fit.name] = result.mean_variance
    return tables, trends


def _adjust(log_p: _Array, *, jointly: bool) -> _Array:
    """Benjamini-Hochberg adjusted p of log p (contrasts, genes), within rows or over all."""
    if jointly:
        return _adjust_bh(log_p.ravel()).reshape(log_p.shape)
    adjusted = np.empty_like(log_p)

    def fill(rows: range) -> None:
        for i in rows:
            adjusted[i] = _adjust_bh(log_p[i])

    spread(fill, len(log_p), step=16, size=log_p.size)
    return adjusted


def _adjust_bh(log_p: _Array) -> _Array:
    adjusted = np.full(log_p.shape, np.nan)
    tested = ~np.isnan(log_p)
    # a log p off the table of values may be a rounding error above 0
    adjusted[tested] = false_discovery_control(np.minimum(np.exp(log_p[tested]), 1))
    return adjusted


# the settings of limma_table, and the limit of the signed -log10 p
_BOTH = {"by": "cell_type", "contrasts": "limma", "zero_p": "eps"}
_OP3 = {"joint": True, "robust": True, "gene_filter": "intersection", "adjust": "joint"}
FLAVOURS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "kaggle": {**_BOTH, "design": "~0 + {group} + donor + plate + row", "clip": None},
        "op3": {**_BOTH, **_OP3, "design": "~0 + {group} + plate", "clip": 4.0},
    }
)


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
    """A DE table in a published flavour; ``options`` of ``limma_table`` override the flavour's.

    For ``kaggle``, compounds are ordered as the organisers' integer codes were, and the released
    plate names are changed back into those of the organisers' own analysis, unless
    ``rename_plates`` is off.
    """
    if flavour not in FLAVOURS:
        raise ConfigError(f"no flavour {flavour!r}", fix=suggest(flavour, FLAVOURS))
    if obs is None and not isinstance(counts, pd.DataFrame):
        obs = getattr(counts, "obs", None)
    if flavour == "kaggle" and obs is not None:
        obs = _organisers_obs(obs, group=group, rename_plates=rename_plates)
    settings = {**FLAVOURS[flavour], **options}
    clip = settings.pop("clip")
    table = limma_table(counts, obs, group=group, control=control, **settings)
    return replace(table, clip=clip, info={**table.info, "flavour": flavour})


def _organisers_obs(obs: pd.DataFrame, *, group: str, rename_plates: bool) -> pd.DataFrame:
    """obs with the plate names and the order of compounds of the organisers' analysis."""
    obs = obs.copy()
    if group in obs and not obs[group].isna().any():
        # their compounds were numbered by first appearance, and R ordered the numbers as text
        names = obs[group].astype(str)
        numbers = {name: str(i) for i, name in enumerate(dict.fromkeys(names))}
        order = sorted(numbers, key=lambda name: numbers[name])
        obs[group] = names.astype(pd.CategoricalDtype(order))
    if rename_plates and "plate" in obs:
        plates = obs["plate"].astype(str)
        if set(plates) <= set(ORGANISERS_PLATES):
            obs["plate"] = plates.map(ORGANISERS_PLATES)
        else:
            log.info("these are not the competition's six plates: their names are left as they are")
    return obs
