"""Which samples and genes go into which fit, under which design, and which contrasts it answers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.core.errors import ConfigError, CountsError, SchemaError, shorten, suggest
from perturbgen.data import complete
from perturbgen.de.counts import Inputs
from perturbgen.de.design import Design
from perturbgen.de.normalise import filter_by_expr

log = logging.getLogger(__name__)

_NUISANCES = ("donor", "plate", "row")  # of samples, in the order in which they join a design


@dataclass(frozen=True)
class Fit:
    """One fit: the positions of its samples, its design, and its contrasts.

    ``conditions`` are the labels of the contrasts, ``weights`` (contrasts, columns) what they are
    of the coefficients, ``replicates`` (contrasts, 2) how many samples each condition and its
    control have, ``genes`` a mask of the genes it uses (None: all).
    """

    name: str
    rows: NDArray[np.intp]
    design: Design
    conditions: list[tuple[str, ...]]
    weights: NDArray[np.float64]
    replicates: NDArray[np.intp]
    genes: NDArray[np.bool_] | None = None

    def answers_as(self, other: Fit) -> bool:
        """Whether it answers what another one does, and has degrees of freedom for it."""
        same = (self.answerable("exact") >= other.answerable("exact")).all()
        return bool(same) and self.design.df_residual > 0

    def answerable(self, contrasts: str) -> NDArray[np.bool_]:
        """Which contrasts the design can answer.

        limma gives a number for a contrast outside the design's row space too, one that depends on
        which columns were dropped; here it is not answered. With limma's kind a contrast of a
        dropped coefficient is not, either.
        """
        possible = self.design.estimable(self.weights)
        if contrasts == "limma":
            possible &= ~self.weights[:, self.design.dropped].any(axis=1)
        return possible


@dataclass(frozen=True)
class Question:
    """The design's formula, the compared column and its control, within levels of ``by``."""

    design: str
    group: str
    control: str
    by: str | None = None
    joint: bool = False

    def fits(self, obs: pd.DataFrame) -> list[Fit]:
        """The fits of an analysis: one, or one for each level of ``by`` unless ``joint``."""
        by, control = self.by, self.control
        groups = _text_column(obs, self.group, "group")
        if self.joint and by is None:
            fix = 'by="cell_type" compares compounds within each cell type'
            raise ConfigError("joint=True needs by=", fix=fix)
        strata = _strata(obs, by)
        _require_control(groups, strata, self)
        if self.joint:
            return [_plan_joint(obs, self.design, groups, strata, control)]
        fits = []
        for level in _level_order(strata):
            rows = np.flatnonzero((strata == level).to_numpy())
            if (groups.iloc[rows] == control).all():
                if by is None:  # the one fit there is: the error below says it
                    continue
                log.warning("%s %r holds nothing but the control: it has no contrast", by, level)
                continue
            fits.append(_plan_one(obs, self.design, groups, rows, control, (level,) if by else ()))
        if not fits:
            what = f"every sample is {control!r}: there is nothing to compare with the control"
            raise SchemaError(what)
        return fits

    def filtered(
        self, fits: Sequence[Fit], data: Inputs, gene_filter: str | Sequence[str] | None
    ) -> list[Fit]:
        """The fits, each with the genes that it uses: edgeR's filter, or genes by name."""
        if gene_filter is None:
            return list(fits)
        masks: list[NDArray[np.bool_]]
        if gene_filter == "filterByExpr":
            masks = [_expressed(data.values[fit.rows], fit.design) for fit in fits]
        elif gene_filter == "intersection":
            masks = [_common_genes(data, self)] * len(fits)
        elif isinstance(gene_filter, str):
            raise ConfigError(
                f"gene_filter={gene_filter!r} is unknown",
                expected='"filterByExpr", "intersection" or genes',
            )
        else:
            absent = [name for name in gene_filter if name not in data.genes]
            if absent:
                what = f"{len(absent)} genes of gene_filter are not in the counts"
                raise SchemaError(f"{what}: {shorten(absent)}")
            masks = [np.asarray(data.genes.isin(list(gene_filter)))] * len(fits)
        for fit, mask in zip(fits, masks, strict=True):
            if not mask.any():
                fix = "gene_filter=None, or check the sequencing depth"
                raise SchemaError("the gene filter leaves no gene", fix=fix)
            empty = np.flatnonzero(~data.values[fit.rows][:, mask].any(axis=1))
            if len(empty):
                samples = shorten(data.obs.index[fit.rows[empty]])
                what = f"no counts are left after the gene filter in {samples}"
                raise CountsError(what, fix="drop those samples")
        # no mask where none is needed: the counts are then used as they are, without a copy
        pairs = zip(fits, masks, strict=True)
        return [fit if mask.all() else replace(fit, genes=mask) for fit, mask in pairs]


def with_control(obs: pd.DataFrame, group: str, control: str | None) -> pd.DataFrame:
    """obs whose column ``group`` is a factor, with the control as its first level."""
    groups = _text_column(obs, group, "group")
    levels = _level_order(groups)
    if control is not None:
        if control not in levels:
            what = f"no sample has {group} = {control!r} (the control)"
            raise SchemaError(what, fix=suggest(control, levels))
        levels = [control, *(level for level in levels if level != control)]
    return obs.assign(**{group: pd.Categorical(groups, levels)})


def level_rows(obs: pd.DataFrame, by: str | None) -> list[tuple[str, NDArray[np.intp]]]:
    """The levels of a column in R's order, and the positions of their samples; one without it."""
    strata = _strata(obs, by)
    return [(level, np.flatnonzero((strata == level).to_numpy())) for level in _level_order(strata)]


def gene_mask(
    data: Inputs, design: Design, gene_filter: str | Sequence[str] | None
) -> NDArray[np.bool_] | None:
    """The genes of one fit: those that edgeR's filter keeps, or by name; None: all."""
    every = np.arange(len(data.values))
    fit = Fit("", every, design, [], np.empty((0, 0)), np.empty((0, 2), dtype=np.intp))
    if gene_filter == "intersection":
        what = "the intersection is that of several fits, and there is one"
        raise ConfigError(what, fix='gene_filter="filterByExpr"')
    [found] = Question("", "", "").filtered([fit], data, gene_filter)
    return found.genes


def usual_design(
    obs: pd.DataFrame, *, group: str = "compound", control: str, by: str | None = None
) -> str:
    """The design for samples of which none is given: the group, and what else told them apart.

    Donor, plate and row join where they vary and leave every contrast estimable that the group
    alone has, with degrees of freedom left for a variance.
    """
    design = "~0 + {group}"
    fits = Question(design, group, control, by).fits(obs)
    for name in _NUISANCES:
        if name not in obs or obs[name].isna().any() or obs[name].nunique() < 2:
            continue
        longer = Question(f"{design} + {name}", group, control, by)
        found = longer.fits(obs.assign(**{name: obs[name].astype(str)}))
        pairs = list(zip(found, fits, strict=True))
        adds = any(one.design.rank > before.design.rank for one, before in pairs)
        if adds and all(one.answers_as(before) for one, before in pairs):
            design, fits = longer.design, found
    return design


def _text_column(obs: pd.DataFrame, name: str, role: str) -> pd.Series:
    """A column of obs as text, without missing values; categories keep their order."""
    values = complete(obs, name, role, rows="samples")
    if isinstance(values.dtype, pd.CategoricalDtype):
        used = values.cat.remove_unused_categories()
        return used.cat.rename_categories([str(c) for c in used.cat.categories])
    return values.astype(str)


def _strata(obs: pd.DataFrame, by: str | None) -> pd.Series:
    return _text_column(obs, by, "by") if by else pd.Series("", index=obs.index)


def _level_order(values: pd.Series) -> list[str]:
    """The levels of a factor in R's order: that of the categories, otherwise by code point."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return [str(c) for c in values.cat.categories]
    return sorted(values.unique())


def _require_control(groups: pd.Series, strata: pd.Series, asked: Question) -> None:
    """Every stratum must hold the control."""
    known = _level_order(groups)
    if asked.control not in known:
        raise SchemaError(
            f"no sample has {asked.group} = {asked.control!r} (the control)",
            fix=suggest(asked.control, known),
        )
    holding = set(strata[groups == asked.control])
    lacking = [level for level in _level_order(strata) if level not in holding]
    if lacking:
        raise SchemaError(
            f"the control {asked.control!r} is missing in {asked.by} {shorten(lacking)}",
            expected=f"samples of the control for every {asked.by}",
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
    coded = Design.from_formula(design, obs.iloc[rows], members)
    sizes = members.value_counts()
    levels = [level for level in coded.levels if level != control]
    weights = np.array([coded.contrast(level, control) for level in levels])
    replicates = np.array([[sizes[level], sizes[control]] for level in levels])
    labels: list[tuple[str, ...]] = [(*prefix, level) for level in levels]
    return Fit("".join(prefix), rows, coded, labels, weights, replicates)


def _plan_joint(
    obs: pd.DataFrame, design: str, groups: pd.Series, strata: pd.Series, control: str
) -> Fit:
    """One fit of all combinations of ``by`` and ``group``, each compared with its own control."""
    pairs = list(zip(strata.astype(str), groups.astype(str), strict=True))
    # R sorts the pasted names; the tuple breaks ties, so that two combinations that paste to one
    # name stay apart
    order = sorted(set(pairs), key=lambda pair: (f"{pair[1]}_{pair[0]}", pair))
    code = {pair: i for i, pair in enumerate(order)}
    codes = [code[pair] for pair in pairs]
    # numbers for names: no name of a compound can be taken for a combination
    names = pd.Index([str(i) for i in range(len(order))])
    combined = pd.Series(pd.Categorical.from_codes(codes, names), obs.index)
    coded = Design.from_formula(design, obs, combined)
    sizes = np.bincount(codes)
    wanted: list[tuple[str, ...]] = [
        (stratum, level)
        for stratum in _level_order(strata)
        for level in _level_order(groups)
        if level != control and (stratum, level) in code
    ]
    compared = [(code[s, g], code[s, control]) for s, g in wanted]
    weights = np.array([coded.contrast(str(one), str(other)) for one, other in compared])
    replicates = np.array([[sizes[one], sizes[other]] for one, other in compared])
    return Fit("joint", np.arange(len(obs)), coded, wanted, weights, replicates)


def _expressed(values: NDArray[np.float64], design: Design) -> NDArray[np.bool_]:
    return filter_by_expr(values, design=design.matrix[:, design.kept]).to_numpy()


def _common_genes(data: Inputs, asked: Question) -> NDArray[np.bool_]:
    """The genes that the filter keeps in every level of ``by``, each under its own design."""
    groups = _text_column(data.obs, asked.group, "group")
    strata = _strata(data.obs, asked.by)
    keep = np.ones(len(data.genes), dtype=bool)
    for level in _level_order(strata):
        rows = np.flatnonzero((strata == level).to_numpy())
        design = Design.from_formula(asked.design, data.obs.iloc[rows], groups.iloc[rows])
        keep &= _expressed(data.values[rows], design)
    return keep
