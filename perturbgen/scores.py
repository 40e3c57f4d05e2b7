"""Predictions against what was measured, from Python: read, joined by label, scored, and as a page.

>>> scores = pg.score(truth, {"mine": de, "additive": ...})
>>> scores.report("report.html")
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from perturbgen.baselines import REGISTRY, find_baseline, make
from perturbgen.core.errors import ConfigError, CountsError, SchemaError, shorten, suggest
from perturbgen.core.tables import CONDITION
from perturbgen.evaluate import (
    METRICS,
    VCC2026,
    Groups,
    MeasuredCells,
    Metric,
    Scorecard,
    ScorecardText,
    choose_metrics,
    report_page,
    scorecard,
)

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.de import DETable

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Predictions scored between their controls: the ``card``, and the tables that it is about."""

    card: Scorecard
    truth: pd.DataFrame
    predictions: Mapping[str, pd.DataFrame]
    warnings: tuple[str, ...] = ()

    @property
    def table(self) -> pd.DataFrame:
        """Means over conditions, metrics x methods, the best method first."""
        means = self.card.scores.mean(axis=1).unstack("method")
        names = [metric.name for metric in self.card.metrics]
        return means.loc[names, self.card.ranking["method"].tolist()]

    def report(self, path: str | Path, *, title: str = "Scorecard") -> Path:
        """Write the page: who is best, by how much, on which conditions and genes."""
        about: dict[str, Any] = {"title": title, "warnings": self.warnings}
        return report_page(self.card, self.truth, self.predictions, **about).write(path)

    def __repr__(self) -> str:
        text = ScorecardText(self.card)
        rows, shown = text.headline_records(), 12
        width = max(len(str(row["method"])) for row in rows)
        lines = [
            f"  {row['place'] or '-':>3}  {row['method']:<{width}}  {row['headline']} {row['role']}"
            for row in rows[:shown]
        ]
        more = [f"  and {len(rows) - shown} more"] if len(rows) > shown else []
        more += [f"  {note}" for note in (*text.notes(), *self.warnings)]
        head = f"Scores of {len(rows)} methods on {self.card.scores.shape[1]:,} conditions"
        return "\n".join([f"{head} x {self.truth.shape[1]:,} genes", *lines, *more])


def score(
    truth: pd.DataFrame | AnnData | DETable | str | Path,
    predictions: Mapping[str, Any],
    *,
    train: pd.DataFrame | AnnData | DETable | str | Path | None = None,
    smiles: pd.Series | None = None,
    statistic: str = "signed_log10_p",
    layer: str | None = None,
    seed: int = 0,
    **options: Any,
) -> Scores:
    """Score predictions of conditions x genes against the measured table.

    A table is a frame labelled by cell type and compound, an AnnData whose obs is, a DE table, a
    file, or what ``predict_de`` returns. The name of a baseline in its place, or ``...`` where the
    method is called so, is fitted on ``train``, and without it on the measured rows that the
    predictions say nothing of. ``layer`` is that of AnnData; ``options`` are those of
    :func:`perturbgen.evaluate.scorecard`: ``positive``, ``metrics``, ``headline``, ``rows``, ...
    """
    if not isinstance(predictions, Mapping):
        raise SchemaError(
            f"the predictions are a {type(predictions).__name__}",
            expected="a dict of names and tables",
            fix="pg.score(truth, {'mine': table, 'additive': ...})",
        )
    read = _Reader(statistic, layer)
    measured = read.table(truth, "the truth")
    tables: dict[str, pd.DataFrame] = {}
    fitted: dict[str, str] = {}
    for name, source in _flat(predictions):
        baseline = _baseline_of(name, source)
        if baseline is None:
            tables[name] = read.table(source, name)
        else:
            find_baseline(baseline)  # a misspelt name is told before anything is fitted
            fitted[name] = baseline
    known = None if train is None else read.table(train, "train")
    if fitted and known is None:
        measured, known = _divided(measured, tables, list(fitted))
    if known is not None:
        known = _apart(known, measured)
        options = {"reference": known.mean(), **options}
    for name, baseline in fitted.items():
        tables[name] = _fitted(baseline, known, measured, smiles, seed)
    order = [name for name, _ in _flat(predictions)]
    tables = {name: tables[name] for name in order}
    # Of the package alone: what somebody else names by module:Class is a method of theirs.
    ours = [name for name, baseline in fitted.items() if find_baseline(baseline).is_bar]
    card = scorecard(measured, tables, seed=seed, **{"baselines": ours, **options})
    return Scores(card, measured, tables, tuple(_remembered(predictions)))


def _remembered(predictions: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each table of a model that was trained on what it predicts."""
    for name, source in _flat(predictions):
        n = source.attrs.get("remembered", 0) if isinstance(source, pd.DataFrame) else 0
        if n:
            yield (
                f"{name} was trained on {n} of its {len(source)} conditions: of these its score is "
                "that of remembering."
            )


def score_cells(
    prediction: AnnData,
    truth: AnnData,
    *,
    perturbation: str,
    control: str,
    metrics: str | Sequence[str] = "vcc2026",
) -> pd.DataFrame:
    """Score generated cells of raw counts as the Virtual Cell Challenge 2026 does.

    Columns ``perturbation`` (empty for a value of all together), ``metric``, ``value``; NaN where a
    metric says nothing of a perturbation. ``perturbation`` is the column of obs that names it,
    ``control`` its value for control cells: the measured ones are the control of both sides.
    ``metrics`` are names, ``vcc2026`` for the six of the challenge or ``all``.
    """
    measured, predicted = read_cells(prediction, truth, perturbation=perturbation, control=control)
    return measured.panel(predicted).scores(count_metrics(metrics))


def read_cells(
    prediction: AnnData, truth: AnnData, *, perturbation: str, control: str
) -> tuple[MeasuredCells, Groups]:
    """Both sides, joined by the names of genes and perturbations, or an error that names them."""
    measured = measured_cells(truth, perturbation=perturbation, control=control)
    labels = _labels(prediction, perturbation, "the prediction")
    found, wanted = set(labels.tolist()) - {control}, set(measured.names)
    if found != wanted:
        raise SchemaError(
            f"perturbations are not the measured ones: {_apart_said(found, wanted)}",
            expected=f"cells of each of the {len(wanted)} perturbations of the truth",
        )
    genes = prediction.var_names.astype(str)
    if sorted(genes) != measured.genes.tolist():
        said = _apart_said(set(genes), set(measured.genes.tolist()))
        raise SchemaError(
            f"the prediction's genes are not the measured ones: {said or 'some are there twice'}",
            expected="the same genes, in any order",
        )
    counts = _counts(prediction, "the prediction")[:, genes.get_indexer(measured.genes)]
    if control in set(labels.tolist()):
        log.info("the prediction's control cells are not used: the measured ones are")
    return measured, Groups.of(counts, labels, measured.names)


def _apart_said(found: set[str], wanted: set[str]) -> str:
    """What one of two sets lacks, and what it has more."""
    said = {"lacks": sorted(wanted - found), "has beside them": sorted(found - wanted)}
    return ", ".join(f"it {what} {len(one)}: {shorten(one)}" for what, one in said.items() if one)


def measured_cells(truth: AnnData, *, perturbation: str, control: str) -> MeasuredCells:
    """Measured counts with their labels, checked; genes by name."""
    labels = _labels(truth, perturbation, "the truth")
    known = sorted(set(labels.tolist()))
    if control not in known:
        raise SchemaError(
            f"no cell of the truth has {perturbation} = {control!r}",
            expected=f"control cells; there are {shorten(known)}",
            fix=suggest(control, known),
        )
    if len(known) < 2:
        raise SchemaError(f"all cells of the truth are {control!r}: there is nothing to predict")
    genes = truth.var_names.astype(str)
    if not genes.is_unique:
        raise SchemaError(f"genes twice: {shorten(genes[genes.duplicated()])}")
    order = np.argsort(genes.to_numpy(), kind="stable")
    counts = _counts(truth, "the truth")[:, order]
    return MeasuredCells(counts, labels, control, genes.to_numpy()[order])


def count_metrics(metrics: str | Sequence[str]) -> list[Metric]:
    """Metrics of raw counts by their names, or a family of them."""
    families = {"vcc2026": VCC2026, "all": None}
    names = [metrics] if isinstance(metrics, str) else metrics
    known = [*families, *(metric.name for metric in choose_metrics(None, counts=True))]
    for name in names:
        if name not in METRICS and name not in families:
            raise ConfigError(f"no metric {name!r} of raw counts: {suggest(name, known)}")
    return choose_metrics(families.get(names[0], names), counts=True)


def _labels(cells: AnnData, column: str, name: str) -> NDArray[np.str_]:
    if column not in cells.obs:
        raise SchemaError(
            f"{name} has no column {column!r} in obs",
            expected=f"the column that names perturbations; there are {shorten(cells.obs.columns)}",
            fix=suggest(column, list(map(str, cells.obs.columns))),
        )
    labels = cells.obs[column]
    if labels.isna().any():
        raise SchemaError(f"{int(labels.isna().sum())} cells of {name} have no {column}")
    return labels.astype(str).to_numpy(dtype=np.str_)


def _counts(cells: AnnData, name: str) -> sparse.csr_array:
    if cells.X is None:
        raise SchemaError(f"{name} has no X", expected="raw counts in X")
    values = sparse.csr_array(cells.X)
    wrong = ~np.isfinite(values.data) | (values.data < 0) | (values.data != np.floor(values.data))
    if wrong.any():
        raise CountsError(
            f"{name} holds {int(wrong.sum()):,} values that are no counts, such as "
            f"{values.data[wrong][0]:g}",
            expected="raw counts: whole numbers, 0 or more",
            fix="give the counts from before normalisation",
        )
    return values


def _flat(predictions: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Methods by name; of several estimators each is one."""
    for name, source in predictions.items():
        several = getattr(source, "values", None) if _is_prediction(source) else source
        if isinstance(several, Mapping):
            alone = len(several) == 1
            for key, table in several.items():
                yield (name if alone else f"{name}: {key}"), table
        else:
            yield name, source


def _is_prediction(source: Any) -> bool:
    """Whether it is what :func:`perturbgen.predict.predict` returns."""
    return type(source).__module__.startswith("perturbgen.predict.")


def _baseline_of(name: str, source: Any) -> str | None:
    """The baseline that is meant, if it is no table."""
    if isinstance(source, EllipsisType):
        return name
    if not isinstance(source, str):
        return None
    if source in REGISTRY.built_in or ":" in source:
        return source
    return None if Path(source).suffix or Path(source).exists() else source


@dataclass(frozen=True)
class _Reader:
    statistic: str
    layer: str | None

    def table(self, source: Any, name: str) -> pd.DataFrame:
        """Conditions x genes, the levels of the rows called cell_type and compound."""
        from anndata import AnnData

        from perturbgen.de import DETable, labelled, read_de_table

        if isinstance(source, str | Path):
            layer = self.layer if str(source).endswith(".h5ad") else None
            return read_de_table(Path(source), statistic=self.statistic, layer=layer)
        if isinstance(source, DETable):
            DETable.require_statistic(self.statistic)
            return getattr(source, self.statistic)
        if isinstance(source, AnnData):
            source = self._of_anndata(source)
        if not isinstance(source, pd.DataFrame):
            raise SchemaError(
                f"{name} is of type {type(source).__name__}",
                expected="a table of conditions x genes: DataFrame, AnnData, DETable or a file, "
                "or the name of a baseline",
            )
        names = {*map(str, source.index.names), *map(str, source.columns)}
        if names & {*CONDITION, "sm_name"}:
            return labelled(source, Path(name))
        return source  # labels without a name are joined as they are

    def _of_anndata(self, source: AnnData) -> pd.DataFrame:
        values: Any = source.X if self.layer is None else source.layers[self.layer]
        if values is None:
            raise SchemaError(
                "this AnnData has no X", fix=f"layer=... one of {shorten(source.layers)}"
            )
        dense = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
        named = [name for name in (*CONDITION, "sm_name") if name in source.obs]
        table = pd.DataFrame(dense, source.obs.index, source.var_names)
        return pd.concat([source.obs[named].astype(str), table], axis=1).reset_index(drop=True)


def _divided(
    measured: pd.DataFrame, tables: Mapping[str, pd.DataFrame], fitted: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The measured rows that are predicted, and those that baselines can learn from."""
    needed = "train=..., the measured table that they learn from"
    if not tables:
        raise SchemaError(
            f"nothing says which conditions {shorten(fitted)} shall predict", fix=needed
        )
    asked = measured.index.isin(next(iter(tables.values())).index)
    if asked.all() or not asked.any():
        raise SchemaError(
            f"{shorten(fitted)} has nothing to learn from: "
            f"{'all' if asked.all() else 'none'} of the measured conditions are predicted",
            fix=needed,
        )
    return measured[asked], measured[~asked]


def _apart(known: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """What is learnt from, refused where it holds what is scored, with the truth's genes."""
    both = known.index[known.index.isin(measured.index)]
    if len(both):
        names = [" | ".join(map(str, key)) if isinstance(key, tuple) else key for key in both]
        raise SchemaError(
            f"train holds {len(both)} of the {len(measured)} conditions that are scored: "
            f"{shorten(names, 3)}",
            expected="rows that no prediction is scored on",
            fix="train.drop(truth.index, errors='ignore')",
        )
    absent = measured.columns[~measured.columns.isin(known.columns)]
    if len(absent):
        raise SchemaError(f"train lacks {len(absent)} genes of the truth: {shorten(absent)}")
    return known[measured.columns]


def _fitted(
    baseline: str,
    known: pd.DataFrame | None,
    measured: pd.DataFrame,
    smiles: pd.Series | None,
    seed: int,
) -> pd.DataFrame:
    entry = find_baseline(baseline)
    given: dict[str, Any] = {"truth": measured} if "truth" in entry.needs else {}
    if "smiles" in entry.uses and smiles is not None:
        given["smiles"] = smiles
    rng = np.random.default_rng(seed)
    model = make(baseline, **given).fit(known, rng=rng)  # type: ignore[arg-type]
    return model.predict(measured.index)  # type: ignore[arg-type]
