"""The methods that are compared, each with the settings among which inner folds choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from perturbgen.profiles.crossmodal.spaces import Space, Spectrum, for_matching, procrustes, regression, rgcca
from perturbgen.profiles.linear import Projection

Array = np.ndarray[Any, Any]
Directions = tuple[Space, Space]  # the space in which the first assay asks, and the one in which the second does


@dataclass(frozen=True)
class Setting:
    """One way to fit: ``fit`` takes the two assays' spectra of the same training rows."""

    name: str
    fit: Callable[[Spectrum, Spectrum], Directions]

    def __str__(self) -> str:
        return self.name


def correlated(tau: float, components: int, before: int | None = None) -> Setting:
    """RGCCA, of the leading ``before`` principal components of each assay where this is given."""

    def fit(x: Spectrum, y: Spectrum) -> Directions:
        if before is not None:
            x, y = x.leading(before), y.leading(before)
        space = for_matching(rgcca(x, y, components=components, tau=tau))
        return space, space

    first = "" if before is None else f"{before} principal components, "
    return Setting(f"{first}tau {tau:g}, {components} variates", fit)


def rotated(components: int) -> Setting:
    """Procrustes."""

    def fit(x: Spectrum, y: Spectrum) -> Directions:
        space = procrustes(x, y, components=components)
        return space, space

    return Setting(f"{components} principal components", fit)


def predicted(ridge: float) -> Setting:
    """Ridge regression of the assay that is searched on the one that asks."""

    def fit(x: Spectrum, y: Spectrum) -> Directions:
        back = regression(y, x, ridge=ridge)
        return regression(x, y, ridge=ridge), Space(back.second, back.first)

    return Setting(f"ridge {ridge:g}", fit)


def torn(setting: Setting, rng: np.random.Generator) -> Setting:
    """The same fit to training pairs that were torn apart: what is left is what the protocol gives away."""

    def fit(x: Spectrum, y: Spectrum) -> Directions:
        return setting.fit(x, replace(y, u=y.u[rng.permutation(len(y.u))]))

    return Setting(f"{setting}, pairs torn apart", fit)


VARIATES: Final = (5, 10, 20, 40)
TAUS: Final = (0.01, 0.1, 0.3, 0.6)


def known(first: Array, second: Array) -> Setting:
    """Maps (features, dimensions) that are given, not fitted: the truth of a fixture, the most there is to reach."""

    def fit(x: Spectrum, y: Spectrum) -> Directions:
        space = Space(*(Projection(side.mean, axes, np.ones(axes.shape[1]))
                        for side, axes in ((x, first), (y, second))))  # fmt: skip
        return space, space

    return Setting("the planted maps", fit)


def methods(*, first_features: int, second_features: int) -> dict[str, list[Setting]]:
    """Names and settings; no more variates than the smaller assay has features."""
    few, many = sorted((first_features, second_features))
    counts = sorted({min(count, few) for count in VARIATES})
    before = sorted({min(count, many) for count in (10, 20, 40, 80)})
    leading = [None, *before[1:2]]
    return {
        "Procrustes": [rotated(count) for count in before],
        "regression": [predicted(ridge) for ridge in (0.1, 1.0, 10.0, 100.0)],
        "PLS": [correlated(1.0, count) for count in counts],
        "CCA": [correlated(0.0, count, size) for size in before for count in counts if count <= size],
        "RGCCA": [correlated(tau, count, size) for size in leading for tau in TAUS for count in counts],
    }
