"""A model, a metric and a baseline for perturbgen: what an extension looks like."""

import numpy as np
import pandas as pd

from perturbgen.evaluate import Metric
from perturbgen.models import NBVAE


class FreeBits(NBVAE):
    """An NB-VAE whose KL costs nothing below ``free`` nats a cell (Kingma et al. 2016)."""

    def __init__(self, *given, free=2.0, **named):  # free is set in [model.settings]
        super().__init__(*given, **named)
        self.free = free

    def forward(self, batch, draws):
        """The terms of the objective, a value for each cell."""
        terms = super().forward(batch, draws)
        return {**terms, "kl": terms["kl"].clamp(min=self.free)}


def strongest_sign(pair):
    """A value for each condition, of a true and a predicted table (conditions, genes)."""
    truth, prediction = pair.truth.values, pair.prediction.values
    strength = np.abs(truth)
    # Several where a table is limited: argmax would take the one that stands first.
    strongest = strength == strength.max(axis=1, keepdims=True)
    agreement = np.sign(truth) * np.sign(prediction) * strongest
    return (agreement.sum(axis=1) / strongest.sum(axis=1) + 1) / 2


STRONGEST_SIGN = Metric(
    "strongest_sign",
    "Strongest sign",
    "Whether the gene of largest absolute true value goes the predicted way; a 0 counts a half.",
    strongest_sign,
    "zeros: a half",
    **{"higher_is_better": True, "high": 1, "zeros": 0.5, "scale_free": True},
)


class ShrunkCompound:
    """Mean of the compound over cell types, shrunk as if ``weight`` rows of zeros joined it."""

    random = False  # no need to fit it again with every seed

    def __init__(self, weight=1.0):  # weight is set in [methods.NAME.settings]
        self.weight = weight

    def fit(self, train, *, rng):
        """Learn from conditions (cell_type, compound) x genes of signed -log10 p."""
        groups = train.groupby(level="compound")
        self.means = groups.sum().div(groups.size() + self.weight, axis=0)
        return self

    def predict(self, conditions):
        """A row for every condition, in their order; 0 for a compound that is not known."""
        values = self.means.reindex(conditions.get_level_values("compound")).fillna(0.0)
        return pd.DataFrame(values.to_numpy(), conditions, self.means.columns)
