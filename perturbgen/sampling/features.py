"""What a forest is told of a well and cell type: the covariates, and what is known from its other cell types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from perturbgen.data.covariates import CovariateEncoder
from perturbgen.sampling.reference import Reference, fit_reference
from perturbgen.sampling.wells import CONDITION, GROUP, WELL, covariates

ONE_HOT: Final = ("cell_type", "compound", "plate", "well", "row", "column", "donor", "library", "control")
MAY_BE_NEW: Final = ("compound", "well", "column", "row")
KNOWN: Final = ("log expected cells", "well: cells", "well: log cells", "compound: cells", "well: depth",
                "compound: depth")  # fmt: skip
PRIOR: Final = 1.0  # cells, so that ratios of nothing are one
PRIOR_DEPTH: Final = 20.0  # cells of no depth effect


@dataclass(frozen=True)
class FeatureMaker:
    """Turns conditions into features; holds what is known of the measured wells.

    ``known`` has a row for each measured group: its labels, ``n_cells``, ``expected`` cells, ``depth_sum`` (cells x
    deviation of their mean log library from the reference).
    """

    encoder: CovariateEncoder
    reference: Reference
    known: pd.DataFrame

    @classmethod
    def fit(cls, groups: pd.DataFrame) -> FeatureMaker:
        """From the groups of a :class:`WellTable`."""
        columns = [name for name in ONE_HOT if name in groups]
        encoder = CovariateEncoder.fit(groups, columns, unknown=[name for name in MAY_BE_NEW if name in columns])
        return cls.of(encoder, fit_reference(groups), groups)

    @classmethod
    def of(cls, encoder: CovariateEncoder, reference: Reference, groups: pd.DataFrame) -> FeatureMaker:
        """With an encoder and a reference fitted before."""
        deviation = groups["log_library"].to_numpy() - reference.expected_depth(groups)
        known = groups[[*GROUP, "compound", "n_cells"]].assign(
            expected=reference.expected_cells(groups),
            depth_sum=np.where(groups["n_cells"] > 0, groups["n_cells"] * np.nan_to_num(deviation), 0.0),
        )
        return cls(encoder, reference, known)

    @property
    def names(self) -> list[str]:
        """A name for each feature."""
        return [*self.encoder.feature_names, *KNOWN]

    def features(self, conditions: pd.DataFrame) -> np.ndarray:
        """Features (conditions, features) float32: one-hot covariates, then ``KNOWN``.

        What is known of a row never includes the row itself: only *other* cell types of its well and of its compound.
        """
        labels = covariates(conditions)
        expected = self.reference.expected_cells(labels)
        well = self.others(labels, WELL, GROUP)
        compound = self.others(labels, ["compound"], CONDITION)
        told = np.stack(
            [
                np.log(expected),
                log_ratio(well),
                np.log(well["n_cells"] + PRIOR),
                log_ratio(compound),
                well["depth_sum"] / (well["n_cells"] + PRIOR_DEPTH),
                compound["depth_sum"] / (compound["n_cells"] + PRIOR_DEPTH),
            ],
            axis=1,
        )
        return np.hstack([self.encoder.features(labels), told.astype(np.float32)])

    def others(self, labels: pd.DataFrame, whole: list[str], own: list[str]) -> pd.DataFrame:
        """Sums over the known rows that share ``whole`` with a condition, less those that share ``own``."""
        values = ["n_cells", "expected", "depth_sum"]
        return lookup(self.known.groupby(whole)[values].sum(), labels) - lookup(
            self.known.groupby(own)[values].sum(), labels
        )


def lookup(sums: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``sums`` for the labels, zero where there is none."""
    names = list(sums.index.names)
    key = pd.MultiIndex.from_frame(labels[names]) if len(names) > 1 else pd.Index(labels[names[0]])
    return sums.reindex(key).fillna(0.0).set_axis(labels.index)


def log_ratio(sums: pd.DataFrame) -> np.ndarray:
    """Log of found over expected cells (rows,)."""
    ratio = (sums["n_cells"] + PRIOR) / (sums["expected"].clip(lower=0) + PRIOR)
    return np.log(ratio.to_numpy())
