"""Where the scale of count metrics begins and ends: the mean response, and a second measurement.

A value u becomes (u - b) / (r - b): 0 is what the mean response of all perturbations gets, 1 what
one half of the measured cells says of the other. It is not cut: an exact copy of the measurement is
better than a repeat of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from perturbgen.core.errors import SchemaError, shorten
from perturbgen.core.stats import divide
from perturbgen.evaluate.counts import CountPanel, Groups, fold_change_error
from perturbgen.evaluate.ranksum import WilcoxonTable, wilcoxon_table
from perturbgen.evaluate.values import Metric

_SPLITS: Final = 5
_NMAE: Final = "de_wilcoxon_lfc_nmae"


@dataclass(frozen=True, eq=False)
class MeasuredCells:
    """Raw counts (cells, genes) of perturbations and of a control, by label."""

    counts: sparse.csr_array
    labels: NDArray[np.str_]
    control: str
    genes: NDArray[np.str_]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The perturbations, by name."""
        return tuple(sorted(set(self.labels.tolist()) - {self.control}))

    @cached_property
    def groups(self) -> Groups:
        """The cells of each perturbation."""
        return Groups.of(self.counts, self.labels, self.names)

    @cached_property
    def controls(self) -> Groups:
        """The control cells."""
        return Groups.of(self.counts, self.labels, [self.control])

    @cached_property
    def table(self) -> WilcoxonTable:
        """Differential expression of each perturbation: every panel of these cells has it."""
        return wilcoxon_table(list(self.groups), self.controls.counts)

    @cached_property
    def own(self) -> NDArray[np.intp]:
        """The gene that each perturbation is called as, or -1."""
        place = {gene: at for at, gene in enumerate(self.genes.tolist())}
        return np.array([place.get(name, -1) for name in self.names], dtype=np.intp)

    def panel(self, prediction: Groups, origin: Groups | None = None) -> CountPanel:
        """A prediction of the same perturbations beside the measured cells."""
        sides = (self.groups, prediction, self.controls, origin or self.controls)
        return CountPanel(*sides, self.table, self.own)

    def take(self, rows: NDArray[np.intp]) -> MeasuredCells:
        """Some of the cells."""
        return MeasuredCells(self.counts[rows], self.labels[rows], self.control, self.genes)

    def halves(self, seed: int) -> tuple[MeasuredCells, MeasuredCells]:
        """Two halves of each group's cells, drawn; of an odd number one cell is left out."""
        rng = np.random.default_rng(seed)
        sides: tuple[list[NDArray[np.intp]], list[NDArray[np.intp]]] = ([], [])
        sizes = pd.Series(self.labels).value_counts()
        few = sorted(sizes.index[sizes < 2])
        if few:
            raise SchemaError(
                f"{len(few)} groups have fewer than two cells, and no halves: {shorten(few)}",
                fix="leave them out, or do without replicates",
            )
        for name in sorted(set(self.labels.tolist())):
            drawn = rng.permutation(np.flatnonzero(self.labels == name))
            half = len(drawn) // 2
            sides[0].append(drawn[:half])
            sides[1].append(drawn[half : 2 * half])
        one, other = (self.take(np.concatenate(rows)) for rows in sides)
        return one, other

    def mean_response(self, seed: int) -> Groups:
        """The mean response of all perturbations, given to each: drawn control cells, scaled.

        Each gene is scaled to its mean over perturbations, all of one weight, but for those that
        are called as it is.
        """
        sizes = np.diff(self.groups.starts)
        means, kept = self.groups.sums / sizes[:, None], np.ones((len(sizes), len(self.genes)))
        named = np.flatnonzero(self.own >= 0)
        kept[named, self.own[named]] = 0
        response = divide((means * kept).sum(axis=0), kept.sum(axis=0))
        control = self.controls.counts
        scale = divide(response, np.asarray(control.mean(axis=0)).ravel())
        rng = np.random.default_rng(seed)
        drawn = [rng.integers(0, control.shape[0], size=n) for n in sizes]
        cells = control[np.concatenate(drawn)]
        cells = sparse.csr_array(
            (cells.data * scale[cells.indices], cells.indices, cells.indptr), shape=cells.shape
        )
        cells.eliminate_zeros()
        return Groups(cells, self.names, self.groups.starts)


def anchors(
    measured: MeasuredCells, metrics: Sequence[Metric], *, seed: int = 0, splits: int = _SPLITS
) -> pd.DataFrame:
    """Metrics x (``baseline``, ``replicate``, ``replicate_sd``): the ends of the scale.

    The replicate is the mean over ``splits`` of the cells into halves, each with control cells of
    its own, drawn from ``seed``.
    """
    baseline = panel_values(measured.panel(measured.mean_response(seed)).scores(metrics))
    each = pd.DataFrame(list(_replicates(measured, metrics, seed, splits)))
    ends = {"baseline": baseline, "replicate": each.mean(), "replicate_sd": each.std(ddof=0)}
    return pd.DataFrame(ends).loc[[metric.name for metric in metrics]]


def _replicates(
    measured: MeasuredCells, metrics: Sequence[Metric], seed: int, splits: int
) -> Iterator[pd.Series]:
    """What one half says of the other, once a split."""
    whole = measured.table
    for drawn in np.random.SeedSequence(seed).generate_state(splits):
        one, other = measured.halves(int(drawn))
        panel = one.panel(other.groups, other.controls)
        found = panel_values(panel.scores(metrics))
        if _NMAE in found:
            # which genes respond, and how much, is what all cells say: halves find fewer
            responds = whole.significant & panel.others
            found[_NMAE] = np.nanmean(fold_change_error(panel, whole.log_fold_change, responds))
        yield found


def panel_values(scores: pd.DataFrame) -> pd.Series:
    """One value a metric: the mean over the perturbations of which it says something."""
    return scores.groupby("metric", sort=False)["value"].mean()


def scaled(values: pd.Series, ends: pd.DataFrame) -> pd.Series:
    """Values by metric on the scale from the baseline (0) to a replicate (1), not cut."""
    ends = ends.loc[values.index]
    return (values - ends["baseline"]) / (ends["replicate"] - ends["baseline"])
