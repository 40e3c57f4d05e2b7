"""The corrections: scale, centre, compress, whiten on controls, align the controls of batches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import numpy as np
import pandas as pd

from perturbgen.core.errors import SchemaError
from perturbgen.profiles.correct.base import Correction, Pipeline
from perturbgen.profiles.table import Groups, Key, Matrix, blocks

log = logging.getLogger(__name__)

_CONSTANT = 1e-9  # a spread below this share of a feature's typical size is rounding, not variation
_Spread = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows, location and scale of each group


@dataclass(eq=False)
class NestedCentre(Correction):
    """Subtract the mean control of each row's own group.

    A group is a tuple of ``by`` (experiment, plate, site). One with fewer than ``min_reference``
    controls, or one never seen, takes the mean of its parent (the tuple without its last label), at
    last that of all controls. As long as every tuple has its controls, the order of ``by`` changes
    nothing. ``strength`` k shrinks a group's mean to its parent's, n/(n + k), since the mean of six
    wells is itself noise that the whole plate would share.
    """

    by: Sequence[str]
    _: KW_ONLY
    min_reference: int = 1
    strength: float = 0.0

    def _learn(self, X: Matrix, meta: pd.DataFrame, rows: np.ndarray) -> None:
        groups = Groups.of(meta, self.by)
        count, mean = groups.means(X, rows)
        self._centres: dict[Key, np.ndarray] = {}
        # from the root down, since a centre is shrunk to its parent's
        for level in range(len(self.by) + 1):
            parents = pd.factorize(pd.Series([key[:level] for key in groups.keys], dtype=object))
            for number, key in enumerate(parents[1]):
                own = parents[0] == number
                n, total = int(count[own].sum()), count[own] @ mean[own]
                if not key:
                    self._centres[key] = total / n
                elif n >= max(self.min_reference, 1):
                    parent = self._centre(key[:-1])
                    self._centres[key] = (total + self.strength * parent) / (n + self.strength)
        what = f"groups of {'/'.join(self.by)} have fewer than %d controls and take their "
        _warn_of_few(count, groups, self.min_reference, what + "parent's mean")

    def _centre(self, key: Key) -> np.ndarray:
        """The mean that a tuple is given (features,)."""
        return self._centres[key] if key in self._centres or not key else self._centre(key[:-1])

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """Each row minus its tuple's centre."""
        groups = Groups.of(meta, self.by)
        return values - np.stack([self._centre(key) for key in groups.keys])[groups.codes]


def _warn_of_few(count: np.ndarray, groups: Groups, least: int, what: str) -> None:
    short = [key for key, n in zip(groups.keys, count, strict=True) if n < least]
    if short:
        log.warning(f"%d of %d {what}, the first %s", len(short), len(groups), least, short[0])


@dataclass(eq=False)
class ControlScaler(Correction):
    """(x - location) / scale, both of the controls of each group of ``by`` (none: of all).

    * ``sd``: mean and standard deviation;
    * ``mad``: median and 1.4826 MAD;
    * ``percentile``: the 1st percentile becomes 0 and the 99th 1.

    ``shrink`` k > 0 pulls a group of n controls towards all controls: n/(n+k) of its own location
    and variance. Groups with fewer than ``min_reference`` controls take those of all controls. A
    feature that is constant over the controls has no unit and becomes 0.
    """

    by: Sequence[str] = ()
    _: KW_ONLY
    method: Literal["sd", "mad", "percentile"] = "sd"
    shrink: float = 0.0
    min_reference: int = 2

    def _learn(self, X: Matrix, meta: pd.DataFrame, rows: np.ndarray) -> None:
        groups = Groups.of(meta, self.by)
        count, self.location, self.scale = self._spread(X, Groups.of(meta, ()), rows)
        if self.by:
            whole, whole_scale = self.location, self.scale
            count, location, scale = self._spread(X, groups, rows)
            # six wells a plate scale worse than all controls do (BBBC021: NSC 79 of 103): they are
            # drawn towards these
            share = np.where(count >= self.min_reference, count / (count + self.shrink), 0.0)
            own = share[:, None]
            self.location = own * location + (1 - own) * whole
            self.scale = np.sqrt(own * scale**2 + (1 - own) * whole_scale**2)
            what = "groups have fewer than %d controls and are scaled by all controls"
            _warn_of_few(count, groups, self.min_reference, what)
        self._known = {key: i for i, key in enumerate(groups.keys)}
        constant = self.scale <= _CONSTANT * np.maximum(np.abs(self.location), _CONSTANT)
        if constant.any():
            log.warning(
                "%d features are constant over the controls of some group and become 0 there",
                constant.any(axis=0).sum(),
            )
        self.scale = np.where(constant, np.inf, self.scale)

    def _spread(self, X: Matrix, groups: Groups, rows: np.ndarray) -> _Spread:
        """Rows, location and scale by group; quantiles need the controls of one group in memory."""
        if self.method == "sd":
            return groups.moments(X, rows)
        codes = groups.codes[rows]
        location, scale = np.zeros((2, len(groups), X.shape[1]))
        for group in np.unique(codes):
            values = np.asarray(X[rows[codes == group]], np.float64)
            if self.method == "mad":
                location[group] = np.median(values, axis=0)
                scale[group] = 1.4826 * np.median(np.abs(values - location[group]), axis=0)
            else:
                location[group], high = np.percentile(values, [1, 99], axis=0)
                scale[group] = high - location[group]
        return np.bincount(codes, minlength=len(groups)), location, scale

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """Each row in units of its group's controls."""
        if not self.by:
            return (values - self.location) / self.scale
        groups = Groups.of(meta, self.by)
        absent = [key for key in groups.keys if key not in self._known]
        if absent:
            raise SchemaError(
                f"control scaling: {len(absent)} groups of {'/'.join(self.by)} were not there when "
                f"it was fitted, the first {absent[0]}",
                expected="the groups of the fit",
                fix="fit on controls of every batch that is to be transformed",
            )
        rows = np.array([self._known[key] for key in groups.keys])[groups.codes]
        return (values - self.location[rows]) / self.scale[rows]


class Compress(Correction):
    """asinh of every value: linear within a few units, logarithmic beyond.

    It keeps single features of standardised profiles from outweighing the rest, and learns nothing.
    """

    def _learn(self, X: Matrix, meta: pd.DataFrame, rows: np.ndarray) -> None:
        pass

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """asinh of the block."""
        # with a smaller ridge and plate centring NSC 100 of 103 on BBBC021, 96 by z and TVN
        return np.arcsinh(values)


class _Rotation(Correction):
    """(x - mean) @ rotation, of which the rotation is learned."""

    mean: np.ndarray
    rotation: np.ndarray

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """The rows in their new coordinates (rows, components)."""
        return (values - self.mean) @ self.rotation


@dataclass(eq=False)
class Sphering(_Rotation):
    """Make the controls' covariance C = V s V' the identity: (x - mean) V (s + ridge)^(-1/2).

    The ridge (in units of the features' variance) is what lets 330 controls whiten 516 features: a
    direction in which the controls do not vary is scaled by ridge^(-1/2), not by infinity.
    """

    _: KW_ONLY
    ridge: float = 1.0

    def __post_init__(self) -> None:
        if self.ridge < 0:
            raise SchemaError(f"ridge is {self.ridge}", expected="0 or more")

    def _learn(self, X: Matrix, meta: pd.DataFrame, rows: np.ndarray) -> None:
        self.mean, covariance = _covariance(X, rows)
        values, vectors = np.linalg.eigh(covariance)
        scale = np.maximum(values, 0) + self.ridge
        if scale.min() <= 1e-12 * scale.max():
            raise SchemaError(
                f"the covariance of {len(rows)} controls in {X.shape[1]} features is singular",
                expected="more controls than features, or a ridge above 0",
                fix="Sphering(ridge=1.0)",
            )
        self.rotation = _canonical(values, vectors) / np.sqrt(scale)


def _canonical(values: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The eigenvectors with one fixed basis of the null space; LAPACK's depends on rounding.

    Any basis is as good for distances, but not for what is done coordinate by coordinate
    afterwards: a median over wells gives 94 or 93 of 103 treatments on BBBC021, by the basis.
    """
    empty = values <= 1e-9 * max(values.max(), 0.0)
    if not empty.any():
        return vectors
    projector = vectors[:, empty] @ vectors[:, empty].T
    fixed = vectors.copy()
    fixed[:, empty] = np.linalg.qr(projector[:, : int(empty.sum())])[0]
    return fixed


def _covariance(X: Matrix, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (features,) and covariance (features, features; ddof 0) of some rows, in one pass."""
    # about the first row, so that a large offset costs no digits
    origin = np.asarray(X[rows[:1]], np.float64)
    first, second = np.zeros(X.shape[1]), np.zeros((X.shape[1], X.shape[1]))
    for block in blocks(len(rows)):
        values = np.asarray(X[rows[block]], np.float64) - origin
        first += values.sum(axis=0)
        second += values.T @ values
    second -= np.outer(first, first) / len(rows)
    return first / len(rows) + origin[0], second / len(rows)


@dataclass(eq=False)
class Coral(Correction):
    """Give each batch's controls the covariance of all: x (S_b + eta I)^(-1/2) (S + eta I)^(1/2).

    Sun et al. 2016. The mean is not touched (centre before). A batch with fewer than two controls,
    or one never seen, is left as it is.
    """

    by: Sequence[str]
    _: KW_ONLY
    eta: float = 1.0

    def __post_init__(self) -> None:
        if self.eta <= 0:
            raise SchemaError(
                f"eta is {self.eta}",
                expected="above 0, since a batch has fewer controls than features",
            )

    def _learn(self, X: Matrix, meta: pd.DataFrame, rows: np.ndarray) -> None:
        # By itself it made BBBC021's weeks easier to tell from withheld controls (.86 against .78).
        groups = Groups.of(meta, self.by)
        codes, features = groups.codes[rows], X.shape[1]
        scatter, means = np.zeros((features, features)), np.zeros((len(groups), features))
        counts = np.zeros(len(groups))
        self._batches: dict[Key, tuple[np.ndarray, np.ndarray]] = {}
        for number in np.unique(codes):
            values = np.asarray(X[rows[codes == number]], np.float64)
            counts[number], means[number] = len(values), values.mean(axis=0)
            away = values - means[number]
            scatter += away.T @ away
            if len(values) > 1:
                # n controls span n - 1 directions at most; on all others S_b + eta I is eta I, and
                # neither time nor memory is spent
                _, singular, vectors = np.linalg.svd(away, full_matrices=False)
                gain = (singular**2 / (len(away) - 1) + self.eta) ** -0.5 - self.eta**-0.5
                self._batches[groups.keys[number]] = vectors.T, gain
        # the scatter of all controls is that within batches and that of the batches' means
        away = (means - counts @ means / counts.sum()) * np.sqrt(counts)[:, None]
        covariance = (scatter + away.T @ away) / max(counts.sum() - 1, 1)
        values, vectors = np.linalg.eigh(covariance)
        # rounding makes some eigenvalues negative where there are fewer rows than features
        self._colour = (vectors * (np.maximum(values, 0) + self.eta) ** 0.5) @ vectors.T
        what = "batches have fewer than %d controls and are not aligned"
        _warn_of_few(counts, groups, 2, what)

    def apply(self, values: np.ndarray, meta: pd.DataFrame) -> np.ndarray:
        """Each row whitened by its batch and given the colour of all."""
        groups = Groups.of(meta, self.by)
        result = values.copy()
        for number, key in enumerate(groups.keys):
            if key in self._batches:
                rows, (vectors, gain) = groups.codes == number, self._batches[key]
                own = values[rows]
                white = own * self.eta**-0.5 + ((own @ vectors) * gain) @ vectors.T
                result[rows] = white @ self._colour
        return result


@dataclass(eq=False)
class PrincipalComponents(_Rotation):
    """Scores on the leading eigenvectors of the covariance of all rows.

    Treated rows count too, since maps show what treatments do: ``control`` is passed over.
    """

    components: int

    def _learn(self, X: Matrix, meta: pd.DataFrame, rows: np.ndarray) -> None:
        self.mean, covariance = _covariance(X, np.arange(len(meta)))
        vectors = np.linalg.eigh(covariance)[1][:, ::-1][:, : self.components]
        # an eigenvector's sign depends on rounding: its largest loading is made positive
        largest = np.abs(vectors).argmax(axis=0)
        self.rotation = vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])])


def tvn(batch: Sequence[str] = (), *, ridge: float = 1.0) -> Pipeline:
    """Typical variation normalisation (Ando et al. 2017), then CORAL for each batch, if any."""
    steps = [Coral(batch)] if batch else []
    return Pipeline(ControlScaler(), Sphering(ridge=ridge), *steps)
