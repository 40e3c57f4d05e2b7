"""Contrasts by formula as a DE table, within each level of a column."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from perturbgen.core.errors import ConfigError, DesignError
from perturbgen.de.linear import LinearFit, fit
from perturbgen.de.plan import level_rows
from perturbgen.de.table import DETable

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)


def contrast_table(
    counts: AnnData | pd.DataFrame,
    obs: pd.DataFrame | None = None,
    *,
    design: str,
    wanted: Mapping[str, str],
    by: str | None = None,
    treat: float | None = None,
    robust: bool = False,
    trend: bool = False,
    **options: Any,
) -> DETable:
    """A DE table of contrasts ``wanted`` by name, each level of ``by`` fitted apart.

    ``treat`` is a log2 fold change to exceed; ``options`` are those of :func:`fit`. What cannot be
    estimated in a level of ``by`` is left out there, with a warning; in all of them it is an error.
    """
    if obs is None:
        obs = getattr(counts, "obs", None)
    if obs is None:
        raise ConfigError("counts come without obs", expected="an AnnData, or obs=")
    parts: dict[str, DETable] = {}
    problems: dict[str, DesignError] = {}
    for level, rows in level_rows(obs, by):
        try:
            made = fit(
                _of_samples(counts, obs.index[rows]), obs.iloc[rows], design=design, **options
            )
        except DesignError as error:
            if by is None:
                raise
            problems |= {f"{level} | {name}": error for name in wanted}
            log.warning("%s %r cannot be fitted: %s", by, level, error.what)
            continue
        asked = _estimable(made, wanted, by, level, problems)
        if asked is None:
            continue
        exact = {"robust": robust, "trend": trend}
        tested = asked.ebayes(**exact) if treat is None else asked.treat(treat, **exact)
        parts[level] = tested.to_de_table()
    if not parts:
        raise next(iter(problems.values()))
    genes = counts.columns if isinstance(counts, pd.DataFrame) else counts.var_names
    table = _join(parts, by, genes)
    info = {"design": design, "by": by, "formulas": dict(wanted)}
    info |= {name: options.get(name) for name in ("group", "control")}
    info["contrasts"] = options.get("contrasts", "exact")
    return replace(table, info={**table.info, **info})


def _join(parts: Mapping[str, DETable], by: str | None, genes: pd.Index) -> DETable:
    """One table of those of the levels of ``by``; NaN for genes that a level's filter left out."""
    if by is None:
        return next(iter(parts.values()))
    names = [by, "contrast"]
    frames: dict[str, Any] = {
        name: pd.concat([getattr(part, name) for part in parts.values()], keys=parts, names=names)
        for name in (*DETable.STATISTICS, "conditions")
    }
    tested = genes[genes.isin(frames["t"].columns)]
    frames |= {name: frames[name][tested] for name in DETable.STATISTICS}
    trends = {
        level: trend for level, part in parts.items() for trend in part.mean_variance.values()
    }
    return DETable(**frames, info=next(iter(parts.values())).info, mean_variance=trends)


def _of_samples(counts: AnnData | pd.DataFrame, samples: pd.Index) -> AnnData | pd.DataFrame:
    return counts.loc[samples] if isinstance(counts, pd.DataFrame) else counts[samples]


def _estimable(
    made: LinearFit,
    wanted: Mapping[str, str],
    by: str | None,
    level: str,
    problems: dict[str, DesignError],
) -> LinearFit | None:
    """The fit, asked about those contrasts that it can answer; None without any."""
    fine = {}
    for name, formula in wanted.items():
        try:
            made.contrasts({name: formula})
        except DesignError as error:
            if by is None:
                raise
            problems[f"{level} | {name}"] = error
            log.warning("%s in %s %r: %s", name, by, level, error.what)
        else:
            fine[name] = formula
    return made.contrasts(fine) if fine else None
