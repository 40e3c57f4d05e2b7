"""How many cells a well holds, and how deep each is sequenced, drawn for unmeasured conditions.

A fitted sampler is one ``.npz`` of plain arrays and JSON: reading it runs no code.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import pdtr

from perturbgen.core.errors import ConfigError, InputError, SchemaError, shorten
from perturbgen.core.files import atomic_path, check_output, require_file
from perturbgen.core.stats import deal
from perturbgen.core.tables import CONDITION, conditions_of
from perturbgen.data import CovariateEncoder
from perturbgen.generate.features import FeatureMaker
from perturbgen.generate.forest import Forest, SamplerSettings
from perturbgen.generate.wells import WellTable

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

_Floats = NDArray[np.float64]
_FEWEST_ROWS: Final = 20  # for a forest
_FEWEST_ROWS_AT_ALL: Final = 2
_HALF: Final = 0.5  # log(n + 1/2) is the logarithm of a Poisson mean with least bias
_QUANTILE_POINTS: Final = 101
_LIKE_WELLS: Final = 8  # training wells that say how far cells of one well lie apart
# Spread that wells have beyond counting (log scale), for weighting them only: what is drawn is
# measured.
_USUAL_SPREAD: Final = 0.2
_VERSION: Final = 1
# Attributes and arrays of the file; the counts in their names are those of cells.
_FORESTS: Final = ("counts_forest", "depth_forest")
_ARRAYS: Final = ("counts_residual", "depth_residual", "depth_rows")


@dataclass(frozen=True)
class CellSampler:
    """Draws numbers of cells, then library sizes given those: both follow the same lost cells.

        cells    n ~ Poisson(exp(log expected + forest(x) + e))
        depth    mean log library size = reference + forest(x, log n / expected) + e'
        cell     log library size = that mean + d

    e and e' are residuals of training wells, d the deviation of one cell of a training well from
    its well's mean, each drawn from the leaves that x falls into.

    Residuals are out of fold (whole conditions withheld) and freed of counting noise, which the
    draw adds again.
    """

    settings: SamplerSettings
    table: WellTable
    maker: FeatureMaker
    counts_forest: Forest
    depth_forest: Forest
    counts_residual: _Floats
    depth_residual: _Floats
    depth_rows: NDArray[np.int64]

    def __repr__(self) -> str:
        groups = self.table.groups
        words = {"cell_type": "cell types", "compound": "compounds", "plate": "plates"}
        named = [f"{groups[key].nunique()} {word}" for key, word in words.items() if key in groups]
        return f"CellSampler fitted on {len(groups):,} groups of cells ({', '.join(named)})"

    @classmethod
    def fit(
        cls, table: WellTable, *, rng: np.random.Generator, settings: SamplerSettings | None = None
    ) -> Self:
        """Fit both forests on the measured wells."""
        settings = settings or SamplerSettings()
        groups = table.groups
        seen = np.flatnonzero(groups["n_cells"].to_numpy() * np.isfinite(groups["log_library"]) > 0)
        if len(seen) < _FEWEST_ROWS_AT_ALL:
            raise SchemaError(
                f"{len(seen)} samples (wells) x cell types have cells",
                expected=f"{_FEWEST_ROWS_AT_ALL} or more, to know how they vary",
                fix="a column of replicates, if there is one: [columns] sample = ...",
            )
        maker = FeatureMaker.fit(groups)
        if len(seen) < max(_FEWEST_ROWS, 2 * settings.folds):
            return cls._of_few(table, maker, seen, settings)
        x = maker.features(groups)
        cells = groups["n_cells"].to_numpy(float)
        expected = maker.reference.expected_cells(groups)
        # Residuals are taken out of fold: those of a forest on its own rows are far too small.
        fold = _condition_folds(groups, settings.folds, rng=rng)

        y = np.log(cells + _HALF) - np.log(expected)
        weights = _noise_weights(1 / (expected + _HALF))
        counts, predicted = Forest.fit_out_of_fold(x, y, weights, fold, settings, rng)
        counts_residual = _deconvolve(y - predicted, 1 / (expected * np.exp(predicted) + _HALF))

        # Wells without cells have no depth to learn from.
        part = groups.iloc[seen]
        x = _with_cells(maker, part, cells[seen])
        y = part["log_library"].to_numpy() - maker.reference.expected_depth(part)
        noise = _spread_within(table) / cells[seen]
        weights = _noise_weights(noise)
        depth, predicted = Forest.fit_out_of_fold(x, y, weights, fold[seen], settings, rng)
        depth_residual, rows = _deconvolve(y - predicted, noise), seen.astype(np.int64)
        return cls(settings, table, maker, counts, depth, counts_residual, depth_residual, rows)

    @classmethod
    def _of_few(
        cls,
        table: WellTable,
        maker: FeatureMaker,
        seen: NDArray[np.int64],
        settings: SamplerSettings,
    ) -> Self:
        """Of too few samples for a forest: what the plate and the sample's other types say.

        Residuals need no folds: nothing is fitted, and a sample's own row is not among its others.
        """
        groups = table.groups
        log.info("%d samples x cell types: cells and depths follow the samples' own", len(seen))
        x, cells = maker.features(groups), groups["n_cells"].to_numpy(float)
        expected = maker.reference.expected_cells(groups)
        slope = maker.own_sample(x.shape[1])
        counts = Forest.line(slope.cells, len(groups))
        predicted = counts.predict(x)
        y = np.log(cells + _HALF) - np.log(expected) - predicted
        counts_residual = _deconvolve(y, 1 / (expected * np.exp(predicted) + _HALF))
        part = groups.iloc[seen]
        y = part["log_library"].to_numpy() - maker.reference.expected_depth(part)
        depth = Forest.line(np.append(slope.depth, 0.0), len(seen))
        x = _with_cells(maker, part, cells[seen])
        depth_residual = _deconvolve(y - depth.predict(x), _spread_within(table) / cells[seen])
        rows = seen.astype(np.int64)
        return cls(settings, table, maker, counts, depth, counts_residual, depth_residual, rows)

    @classmethod
    def of(cls, cells: AnnData, *, seed: int, settings: SamplerSettings | None = None) -> Self:
        """Fitted on the cells at hand."""
        return cls.fit(WellTable.of(cells), rng=np.random.default_rng([3, seed]), settings=settings)

    def cell_numbers(
        self, conditions: pd.DataFrame, n: int, rng: np.random.Generator
    ) -> pd.DataFrame:
        """Numbers of cells, ``n`` draws for each row (condition and the well's covariates)."""
        if self.table.is_bulk:
            return pd.DataFrame(1, conditions.index, pd.RangeIndex(n, name="draw"))
        x = self.maker.features(conditions)
        residual = self.counts_residual[self.counts_forest.draw_rows(x, n, rng=rng)]
        rate = np.exp(self.log_rate(conditions, x)[:, None] + residual)
        return pd.DataFrame(rng.poisson(rate), conditions.index, pd.RangeIndex(n, name="draw"))

    def quantiles(self, conditions: pd.DataFrame, q: Sequence[float]) -> pd.DataFrame:
        """Quantiles of the number of cells, conditions x q, of the mixture of Poissons exactly."""
        probabilities = np.asarray(q, float)
        if probabilities.size == 0 or not ((probabilities > 0) & (probabilities < 1)).all():
            raise ConfigError(f"quantiles {list(q)}", expected="numbers between 0 and 1")
        x = self.maker.features(conditions)
        # Evenly spaced quantiles of the residual, with a Poisson at each: no draw is needed.
        steps = (np.arange(_QUANTILE_POINTS) + 0.5) / _QUANTILE_POINTS
        residual = _weighted_quantiles(self.counts_residual, self.counts_forest.weights(x), steps)
        rate = np.exp(self.log_rate(conditions, x)[:, None] + residual)
        found = _poisson_mixture_quantiles(rate, probabilities)
        return pd.DataFrame(found, conditions.index, pd.Index(probabilities))

    def libraries(
        self, conditions: pd.DataFrame, n_cells: np.ndarray, rng: np.random.Generator
    ) -> list[_Floats]:
        """Library sizes of the cells of each condition, ``n_cells[i]`` numbers for its row i."""
        n_cells = _whole_numbers(n_cells, len(conditions))
        x = _with_cells(self.maker, conditions, n_cells)
        mean = self.maker.reference.expected_depth(conditions) + self.depth_forest.predict(x)
        # One residual a well, since the cells of a well share what lost the others.
        mean += self.depth_residual[self.depth_forest.draw_rows(x, 1, rng=rng)[:, 0]]
        rows = self.depth_rows[self.depth_forest.draw_rows(x, _LIKE_WELLS, rng=rng)]
        owner = np.repeat(np.arange(len(n_cells)), n_cells)
        sizes = np.exp(mean[owner] + self._deviations(rows, owner, rng))
        return np.split(sizes, np.cumsum(n_cells)[:-1]) if len(n_cells) else []

    def _deviations(
        self, rows: NDArray[np.int64], owner: NDArray[np.int64], rng: np.random.Generator
    ) -> _Floats:
        """How far cells (cells,) lie from the mean log library size of their group.

        The cells of condition ``owner`` are like those of its training groups ``rows`` (conditions,
        groups), each weighing as many as its cells less one: what deviations from their own mean
        tell.
        """
        sizes = np.diff(self.table.starts)[rows]
        share = np.cumsum(np.maximum(sizes - 1, 0), axis=1).astype(float)
        at = rng.random(len(owner)) * share[owner, -1]
        pick = np.minimum((at[:, None] >= share[owner]).sum(axis=1), rows.shape[1] - 1)
        row, size = rows[owner, pick], sizes[owner, pick]
        cell = self.table.starts[row] + (rng.random(len(owner)) * size).astype(np.int64)
        mean = self.table.groups["log_library"].to_numpy()[row]
        # n cells lie nearer to their own mean than to the well's true one, by √((n−1)/n).
        return (self.table.log_libraries[cell] - mean) * np.sqrt(size / np.maximum(size - 1, 1))

    def log_rate(self, conditions: pd.DataFrame, x: NDArray[np.float32]) -> _Floats:
        """The centre of log expected cells (conditions,), given their features x."""
        expected = self.maker.reference.expected_cells(conditions)
        return np.log(expected) + self.counts_forest.predict(x)

    def without(self, conditions: pd.MultiIndex, *, seed: int) -> CellSampler:
        """The sampler, fitted again without some conditions."""
        known = conditions_of(self.table.groups).isin(conditions)
        if not known.any():
            return self
        rng = np.random.default_rng([3, seed])
        return self.fit(self.table.take(~known), rng=rng, settings=self.settings)

    def require_unseen(self, wanted: pd.MultiIndex) -> None:
        """A sampler from elsewhere has not seen the cells of the conditions to predict."""
        seen = wanted[wanted.isin(conditions_of(self.table.groups))]
        if len(seen):
            raise SchemaError(
                f"the sampler was fitted on {len(seen)} of the conditions to predict: "
                f"{shorten([' | '.join(key) for key in seen], 3)}",
                expected="samplers that do not know how many of their cells were found",
                fix="leave --samplers out: they are fitted without these conditions, "
                "which takes seconds",
            )

    def save(self, path: str | Path) -> Path:
        """Write the sampler as ``.npz``: arrays and JSON, no code."""
        path = check_output(path, ".npz")
        table, reference = self.table, self.maker.reference
        about = {
            "version": _VERSION,
            "settings": self.settings.model_dump(),
            "encoder": json.loads(self.maker.encoder.to_json()),
            "groups": table.groups.drop(columns="log_library").to_dict("list"),
            "expected_cells": reference.cells.reset_index().to_numpy(object).tolist(),
            "expected_depth": {name: effect.to_dict() for name, effect in reference.depth.items()},
        }
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        for name in _FORESTS:
            arrays |= {f"{name}.{key}": array for key, array in vars(getattr(self, name)).items()}
        arrays["log_library"] = table.groups["log_library"]
        arrays |= {"log_libraries": table.log_libraries, "starts": table.starts}
        # Text as an array of bytes: object arrays would need pickle, which runs code.
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        with atomic_path(path) as part, part.open("wb") as handle:
            np.savez_compressed(handle, about=text, **arrays)
        return path

    @classmethod
    def load(cls, path: str | Path) -> CellSampler:
        """Read what :meth:`save` wrote, or its folder; its draws are the same to the bit."""
        path = Path(path)
        path = require_file(path / "sampler.npz" if path.is_dir() else path, "sampler")
        try:
            with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return cls._rebuilt(json.loads(arrays["about"].tobytes()), arrays)
        except (BadZipFile, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
            raise InputError(
                f"{path} is not a sampler: {error}",
                expected="a file that CellSampler.save wrote, whole",
            ) from None

    @classmethod
    def _rebuilt(cls, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> CellSampler:
        if about["version"] != _VERSION:
            raise ValueError(f"version {about['version']}, and this program reads {_VERSION}")
        groups = pd.DataFrame(about["groups"]).assign(log_library=arrays["log_library"])
        plates, kinds, rates = zip(*about["expected_cells"], strict=True)
        index = pd.MultiIndex.from_arrays([plates, kinds], names=["plate", "cell_type"])
        depth = {name: pd.Series(effect) for name, effect in about["expected_depth"].items()}
        encoder = CovariateEncoder.from_json(json.dumps(about["encoder"]))
        own: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
        for name in _FORESTS:
            parts = {key: array for key, array in arrays.items() if key.startswith(f"{name}.")}
            own[name] = Forest(**{key.partition(".")[2]: array for key, array in parts.items()})
        return cls(
            settings=SamplerSettings(**about["settings"]),
            table=WellTable(groups, arrays["log_libraries"], arrays["starts"]),
            maker=FeatureMaker.of(encoder, pd.Series(rates, index), depth, groups),
            **own,
        )


def _condition_folds(
    groups: pd.DataFrame, folds: int, *, rng: np.random.Generator
) -> NDArray[np.int64]:
    """A fold for each row: conditions stay whole, those in many wells are dealt by well.

    A condition is in many wells where it has more than twice as many as the median one, or is the
    only one.
    """
    condition, _ = pd.factorize(pd.MultiIndex.from_frame(groups[list(CONDITION)]), sort=True)
    size = np.bincount(condition)[condition]
    many = (size > 2 * np.median(size)) | (condition.max() == 0)
    # Controls stand in so many wells that one fold of them would leave the others none.
    unit = np.where(many, condition.max() + 1 + np.arange(len(groups)), condition)
    units, unit = np.unique(unit, return_inverse=True)
    return deal(len(units), folds, rng)[unit]


def _noise_weights(noise: _Floats) -> _Floats:
    """Weights (rows,) of observations with counting noise of this variance."""
    return 1 / (_USUAL_SPREAD**2 + noise)


def _deconvolve(residual: _Floats, noise: _Floats) -> _Floats:
    """Residuals (rows,) shrunk to their spread without noise of these variances (rows,).

    e x sqrt(s2 / (s2 + noise)), where s2 is the spread beyond noise: the weighted mean of
    e^2 - noise, never negative. A draw adds the counting noise again.
    """
    weights = _noise_weights(noise) ** 2
    spread = max(float((weights * (residual**2 - noise)).sum() / weights.sum()), 0.0)
    return residual * np.sqrt(spread / (spread + noise)) if spread else np.zeros_like(residual)


def _with_cells(
    maker: FeatureMaker, conditions: pd.DataFrame, n_cells: np.ndarray
) -> NDArray[np.float32]:
    """Features (conditions, features) with the log ratio of found to expected cells as the last."""
    expected = maker.reference.expected_cells(conditions)
    ratio = np.log(np.asarray(n_cells, float) + _HALF) - np.log(expected)
    return np.hstack([maker.features(conditions), ratio[:, None].astype(np.float32)])


def _spread_within(table: WellTable) -> float:
    """Variance of log library sizes between the cells of one group, pooled."""
    sizes = np.diff(table.starts)
    means = np.repeat(table.groups["log_library"].to_numpy(), sizes)
    return float(((table.log_libraries - means) ** 2).sum() / max((sizes[sizes > 0] - 1).sum(), 1))


def _weighted_quantiles(values: _Floats, weights: _Floats, q: _Floats) -> _Floats:
    """Quantiles (rows, q) of values (n,), with weights (rows, n) adding up to one."""
    # The values are the same for all rows, their weights are not.
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[:, order], axis=1)
    at = np.stack([np.searchsorted(row, q * row[-1]) for row in cumulative])
    return values[order][np.minimum(at, len(values) - 1)]


def _poisson_mixture_quantiles(rate: _Floats, q: _Floats) -> NDArray[np.int64]:
    """The smallest k with P(n <= k) >= q, (rows, q), of mixtures of Poissons (rows, parts)."""
    most = rate.max(axis=1)
    beyond = np.ceil(most + 12 * np.sqrt(most) + 40)  # twelve SD up: no quantile lies there
    low, high = np.full((len(rate), len(q)), -1.0), np.repeat(beyond[:, None], len(q), axis=1)
    while (high - low > 1).any():
        middle = np.floor((low + high) / 2)
        below = [pdtr(column[:, None], rate).mean(axis=1) for column in middle.T]
        enough = np.stack(below, axis=1) >= q
        high, low = np.where(enough, middle, high), np.where(enough, low, middle)
    return high.astype(np.int64)


def _whole_numbers(n_cells: np.ndarray, length: int) -> NDArray[np.int64]:
    """Numbers of cells (conditions,), checked."""
    values = np.asarray(n_cells)
    if values.shape != (length,) or (values < 0).any() or (values != np.rint(values)).any():
        raise SchemaError(
            f"numbers of cells of shape {values.shape} for {length} conditions",
            expected="one whole number, zero or more, for each condition",
        )
    return values.astype(np.int64)
