"""Variance components by a gamma model with identity link, for many genes at once.

The means are s_e^2 + d s_b^2. It takes the steps of statmod's ``glmgam.fit``, a damped scoring
(Levenberg-Marquardt) that stops early: with its starting values, damping and tolerances, since
limma's numbers are those of where it stops.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]
_TOLERANCE = 1e-6
_ITERATIONS = 20
_DAMPED = 1e15  # more damping than this, and a gene's search is given up


def fit_gamma(d: _Array, number: _Array, total: _Array) -> tuple[_Array, _Array]:
    """The components s_e^2 and s_b^2, both (genes,), NaN where there are none.

    ``d`` (genes, terms) are known; ``total`` (genes, terms) sums of ``number`` squares each, whose
    mean is s_e^2 + d s_b^2.
    """
    first, second, searched = _start(d, number, total)
    genes = np.flatnonzero(searched)
    if len(genes):
        state = _Search(d[genes], number[genes], total[genes], first[genes], second[genes])
        state.run()
        first[genes], second[genes] = state.first, state.second
    return first, second


def _start(d: _Array, number: _Array, total: _Array) -> tuple[_Array, _Array, NDArray[np.bool_]]:
    """Least squares, or one mean where those fit a negative variance; and whom to search for."""
    count = number.sum(axis=1)
    mean_d = (number * d).sum(axis=1) / count
    mean = total.sum(axis=1) / count
    centred = d - mean_d[:, None]
    variation = (number * centred**2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        second = (centred * total).sum(axis=1) / variation
    bent = variation / np.maximum(count - 1, 1) > 1e-15
    second[~bent] = np.nan
    first = mean - second * mean_d
    used = number > 0
    fitted = first[:, None] + d * second[:, None]
    negative = (used & ~(fitted >= 0)).any(axis=1)
    searched = bent & (count > 2) & ((number * (np.abs(d) > 1e-15)).sum(axis=1) > 1)
    searched &= (total > 0).any(axis=1)
    flat = negative & searched
    first[flat], second[flat] = mean[flat], 0.0
    return first, second, searched


class _Search:
    """Damped scoring; every gene has its own damping, and leaves when it has arrived."""

    def __init__(self, d: _Array, number: _Array, total: _Array, first: _Array, second: _Array):
        self.d, self.number, self.total = d, number, total
        self.first, self.second = first.copy(), second.copy()
        self.deviance = self._deviance(slice(None), first, second)[0]
        self.damping = np.zeros(len(d))

    def _deviance(
        self, genes: slice | NDArray[np.intp], first: _Array, second: _Array
    ) -> tuple[_Array, _Array]:
        """2 sum(y/mu + log mu), less what depends on y only; inf where a mean is negative."""
        number, mu = self.number[genes], first[:, None] + self.d[genes] * second[:, None]
        used = number > 0
        mu = np.where(used, mu, 1.0)
        with np.errstate(all="ignore"):
            parts = self.total[genes] / mu + number * np.log(mu)
        deviance = 2 * np.where(used, parts, 0.0).sum(axis=1)
        deviance[(used & (mu < 0)).any(axis=1)] = np.inf
        return deviance, mu

    def run(self) -> None:
        """Steps until all genes have arrived, or for as long as R would."""
        active = np.arange(len(self.d))
        # R counts one iteration beyond its limit
        for iteration in range(_ITERATIONS + 1):
            active = self._step(active, first_time=iteration == 0)
            if not len(active):
                break

    def _step(self, active: NDArray[np.intp], *, first_time: bool) -> NDArray[np.intp]:
        d, number, total = self.d[active], self.number[active], self.total[active]
        used = number > 0
        old_first, old_second = self.first[active], self.second[active]
        mu = old_first[:, None] + d * old_second[:, None]
        v = np.where(used, mu**2, 0.0)
        v = np.maximum(v, v.max(axis=1, keepdims=True) / 1e3)
        with np.errstate(all="ignore"):
            scaled = np.where(used, number / v, 0.0)
            right = np.where(used, (total - number * mu) / v, 0.0)
        a, b, c = scaled.sum(axis=1), (scaled * d).sum(axis=1), (scaled * d * d).sum(axis=1)
        gradient = right.sum(axis=1), (right * d).sum(axis=1)
        largest = np.maximum(a, c)
        if first_time:
            self.damping[active] = (a + c) / 2 / 2
        moved = self._search(active, (a, b, c), gradient, (old_first, old_second), largest)
        with np.errstate(invalid="ignore"):
            lost = self.damping[active] / largest > _DAMPED
            # NaN: R's Cholesky factor fails, and the gene has no correlation
            return active[~lost & (moved >= _TOLERANCE)]

    def _search(
        self,
        active: NDArray[np.intp],
        information: tuple[_Array, _Array, _Array],
        gradient: tuple[_Array, _Array],
        old: tuple[_Array, _Array],
        largest: _Array,
    ) -> _Array:
        """More damping until the deviance falls; gives gradient times step."""
        a, b, c = information
        moved = np.zeros(len(active))
        before = self.deviance[active]
        todo, first_try = np.arange(len(active)), True
        while len(todo):
            genes, damping = active[todo], self.damping[active[todo]]
            g1, g2 = gradient[0][todo], gradient[1][todo]
            p, q, r = a[todo] + damping, b[todo], c[todo] + damping
            with np.errstate(all="ignore"):
                determinant = p * r - q * q
                one, two = (r * g1 - q * g2) / determinant, (p * g2 - q * g1) / determinant
            first, second = old[0][todo] + one, old[1][todo] + two
            deviance, _ = self._deviance(genes, first, second)
            moved[todo] = g1 * one + g2 * two
            accepted = ~(deviance > before[todo])
            hopeless = ~accepted & (damping / largest[todo] > _DAMPED)
            first, second = (
                np.where(hopeless, kept[todo], new)
                for kept, new in zip(old, (first, second), strict=True)
            )
            self.first[genes], self.second[genes] = first, second
            self.deviance[genes] = deviance
            self.damping[genes[~accepted & ~hopeless]] *= 2
            if first_try:
                self.damping[genes[accepted]] /= 10
            first_try, todo = False, todo[~accepted & ~hopeless]
        return moved
