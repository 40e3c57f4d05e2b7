"""The transfer stack: a condition told from the compound's profiles elsewhere, weighted.

For a target cell type, every gene of every known compound is a sample of one small regression. Its
columns are what one can say of a compound without its row in the target: its profile in each source
cell type (whole, and the parts of it in bands of components shared by the genes), the sources'
means, the target's own offset, and the deviations of alike known compounds, kriged (Gaussian
process) on the profiles' similarity. Columns that need the target's rows are made with the compound
withheld, so that the weights are out-of-sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from pydantic import Field, field_validator

from perturbgen.baselines.base import Baseline, ConditionList, TrainTable
from perturbgen.baselines.features import Components, Transform, backward, forward
from perturbgen.core.config import Settings

_PARTS: Final = 20  # in which the known compounds are withheld in turn
_FEWEST: Final = 3  # known compounds, for weights to be fitted or deviations to be kriged


class _TransferSettings(Settings):
    """The columns and the penalties."""

    transform: Transform = "t"
    bands: tuple[int, ...] = Field(
        (3, 10, 25, 60), description="ends of the bands of components; empty for none"
    )
    whole: bool = Field(True, description="the whole profiles are columns too")
    kriging: bool = Field(True, description="deviations of alike known compounds are columns")
    # On the real ranks these add nothing (experiments/LOG.md).
    others: bool = Field(
        True, description="offsets and deviations of the other sparse cell types are columns too"
    )
    noise: float = Field(
        0.3, gt=0, description="of kriging: noise beside a kernel whose mean diagonal is one"
    )
    prior: float = Field(
        0.5, ge=0, description="share of the sources' low-rank profile that offsets are freed of"
    )
    prior_components: int = Field(20, ge=1, description="components of that low-rank profile")
    ridge: float = Field(
        0.01, ge=0, description="penalty on the weights, in units of the mean square of a column"
    )
    source_share: float = Field(
        0.5, gt=0, le=1, description="a source knows at least this share of the compounds"
    )

    @field_validator("bands")
    @classmethod
    def ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        """Ends of bands that grow."""
        if any(high <= low for low, high in zip((0, *value), value, strict=False)):
            raise ValueError("the ends of the bands must be positive and grow")
        return value


@dataclass(frozen=True)
class _Sources:
    """What is known of each compound without the target: profiles, components, similarity.

    ``profiles`` (sources, compounds, genes) are deviations from ``means`` (sources, genes); a
    missing one is the mean of the compound's others, zero where there is none. ``kernel``
    (compounds, compounds) has a mean diagonal of one.
    """

    means: np.ndarray
    profiles: np.ndarray
    components: Components
    kernel: np.ndarray

    @classmethod
    def fit(
        cls, table: TrainTable, names: list[str], compounds: np.ndarray, count: int
    ) -> _Sources:
        """Gather the rows of the source cell types; ``count`` components."""
        place = {compound: i for i, compound in enumerate(compounds)}
        profiles = np.full((len(names), len(compounds), table.values.shape[1]), np.nan)
        for s, name in enumerate(names):
            rows = np.flatnonzero(table.cell_types == name)
            profiles[s, [place[c] for c in table.compounds[rows]]] = table.values[rows]
        measured = ~np.isnan(profiles[:, :, 0])
        known = zip(profiles, measured, strict=True)
        means = np.array([profile[there].mean(axis=0) for profile, there in known])
        profiles -= means[:, None]
        number = measured.sum(axis=0)
        average = np.nansum(profiles, axis=0) / np.maximum(number, 1)[:, None]
        # Filled with what the compound did elsewhere, so that no column has holes.
        for s in range(len(names)):
            profiles[s, ~measured[s]] = average[~measured[s]]
        components = Components.fit(profiles[measured], count, centre=False)
        kernel = average @ average.T
        # In units of its diagonal, so that ``noise`` means the same for every table.
        scale = max(float(np.diag(kernel).mean()), 1e-300)
        return cls(means, profiles, components, kernel / scale)


class _TransferStack(Baseline[_TransferSettings]):
    """Profiles elsewhere + the cell type's offset + alike compounds, weighted by a small ridge.

    Sources are the cell types that know at least half of the compounds (all but the target, where
    none does). A compound no source knows has a flat profile and gets the target's offset and the
    sources' means; a cell type with fewer than three known compounds gets the sources' mean profile
    of the compound.
    """

    settings_class: ClassVar[type[Settings]] = _TransferSettings

    def _fit(self, table: TrainTable, rng: np.random.Generator) -> None:
        values = forward(table.values, self.settings.transform)
        self._rows = TrainTable(table.cell_types, table.compounds, values, table.genes)
        names = np.unique(table.cell_types)
        needed = self.settings.source_share * len(np.unique(table.compounds))
        self._full = [name for name in names if (table.cell_types == name).sum() >= needed]
        self.weights: dict[str, dict[str, float]] = {}

    def _predict(self, wanted: ConditionList) -> np.ndarray:
        result = np.empty((len(wanted), len(self.table.genes)))
        for name in np.unique(wanted.cell_types):
            rows = np.flatnonzero(wanted.cell_types == name)
            result[rows] = self._predict_cell_type(str(name), wanted.compounds[rows], wanted)
        return backward(result, self.settings.transform)

    def _predict_cell_type(self, name: str, asked: np.ndarray, wanted: ConditionList) -> np.ndarray:
        """Values (conditions, genes) of the compounds ``asked`` for in the cell type."""
        table, chosen = self._rows, self.settings
        names = [str(known) for known in np.unique(table.cell_types)]
        sources = [s for s in self._full if s != name] or [s for s in names if s != name]
        here = wanted.cell_types == name
        if not sources:
            self._tell(wanted, here, "the cell type's mean, no other being measured")
            return np.tile(table.values.mean(axis=0), (len(asked), 1))
        compounds = np.unique(np.concatenate([table.compounds, asked]))
        count = max((*chosen.bands, chosen.prior_components))
        known = _Sources.fit(table, sources, compounds, count)
        profiled = np.isin(compounds, table.compounds[np.isin(table.cell_types, sources)])
        strange = here & np.isin(wanted.compounds, compounds[~profiled])
        self._tell(wanted, strange, "the offset of the cell type")
        sparse = [n for n in names if n != name and n not in sources] if chosen.others else []
        measured = _measured_in(table, [name, *sparse], compounds, profiled)
        at = np.searchsorted(compounds.astype(str), asked.astype(str))
        targets = [target for target in measured if len(target.known) >= _FEWEST]
        if targets[:1] != measured[:1]:
            self._tell(wanted, here, "the sources' mean profile of the compound")
            return known.means.mean(axis=0) + known.profiles[:, at].mean(axis=0)
        weights = self._weights(sources, known, targets)
        self.weights[name] = weights
        result = np.zeros((len(at), table.values.shape[1]))
        for label, column in self._columns(sources, known, targets, at):
            result += weights[label] * column
        return result

    def _weights(
        self, sources: list[str], known: _Sources, targets: list[_Measured]
    ) -> dict[str, float]:
        """The weight of each column, from the target's known compounds, each withheld once."""
        own = targets[0]
        square, cross, labels = np.zeros((0, 0)), np.zeros(0), []
        parts = min(_PARTS, len(own.known))
        for part in np.array_split(np.arange(len(own.known)), parts):
            withheld = own.known[part]
            without = [target.without(withheld) for target in targets]
            made = dict(self._columns(sources, known, without, withheld))
            labels = list(made)
            stacked = np.array([column.ravel() for column in made.values()])
            # Normal equations, part by part: the columns of all genes at once would fill the
            # memory.
            gram, product = stacked @ stacked.T, stacked @ own.values[part].ravel()
            square, cross = (gram, product) if not square.size else (square + gram, cross + product)
        # In units of the mean square of a column, so that it means the same for every table.
        penalty = self.settings.ridge * np.trace(square) / len(square) * np.eye(len(square))
        weights = np.linalg.lstsq(square + penalty, cross, rcond=None)[0]
        return dict(zip(labels, weights.tolist(), strict=True))

    def _columns(
        self, names: list[str], known: _Sources, targets: list[_Measured], at: np.ndarray
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Columns (conditions, genes) of the compounds at ``at``, one at a time: they are large."""
        chosen = self.settings
        loadings = known.components.loadings[: chosen.prior_components]
        # (compounds, genes)
        expected = chosen.prior * (known.profiles.mean(axis=0) @ loadings.T) @ loadings
        for i, target in enumerate(targets):
            label = "own" if i == 0 else target.name
            offset, deviation = _krige(target, known.kernel, expected, at, chosen.noise)
            yield f"{label} offset", np.broadcast_to(offset, deviation.shape)
            if chosen.kriging:
                yield f"{label} alike", deviation
        for name, mean, profile in zip(names, known.means, known.profiles, strict=True):
            yield f"{name} mean", np.broadcast_to(mean, profile[at].shape)
            if chosen.whole:
                yield f"{name} whole", profile[at]
            for low, high in zip((0, *chosen.bands), chosen.bands, strict=False):
                loadings = known.components.loadings[low:high]
                if len(loadings):
                    yield f"{name} {low}-{high}", (profile[at] @ loadings.T) @ loadings


@dataclass(frozen=True, eq=False)
class _Measured:
    """The ``values`` (rows, genes) of a sparse cell type, and the places of their compounds."""

    name: str
    known: np.ndarray
    values: np.ndarray

    def without(self, places: np.ndarray) -> _Measured:
        """As if the compounds at ``places`` had not been measured."""
        kept = ~np.isin(self.known, places)
        return _Measured(self.name, self.known[kept], self.values[kept])


def _measured_in(
    table: TrainTable, names: list[str], compounds: np.ndarray, profiled: np.ndarray
) -> list[_Measured]:
    """The rows of each of the named cell types, of compounds that a source knows."""
    found = []
    for name in names:
        rows = np.flatnonzero(table.cell_types == name)
        places = np.searchsorted(compounds.astype(str), table.compounds[rows].astype(str))
        kept = profiled[places]
        found.append(_Measured(name, places[kept], table.values[rows[kept]]))
    return found


def _krige(
    target: _Measured, kernel: np.ndarray, expected: np.ndarray, at: np.ndarray, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Offset (genes,) of a cell type, deviations (conditions, genes) told by alike compounds.

    With r the rows minus their ``expected`` effects (compounds, genes) and C = K + noise · I, the
    offset is the generalised least squares mean m = 1ᵀC⁻¹r / 1ᵀC⁻¹1, and the deviation of a
    compound is k C⁻¹ (r − m).
    """
    if not len(target.known):  # all of them are withheld just now
        return np.zeros(expected.shape[1]), np.zeros((len(at), expected.shape[1]))
    residual = target.values - expected[target.known]
    among = kernel[np.ix_(target.known, target.known)]
    inverse = np.linalg.inv(among + noise * np.eye(len(among)))
    offset = (inverse.sum(axis=0) / inverse.sum()) @ residual
    return offset, kernel[np.ix_(at, target.known)] @ (inverse @ (residual - offset))
