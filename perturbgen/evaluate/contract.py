"""What a metric of somebody else promises, tried on small tables and cells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from perturbgen.evaluate.cells import cell_pair
from perturbgen.evaluate.values import Metric, Pair, Values


def metric_breaches(metric: Metric) -> Iterator[str]:
    """A truth with a perfect, a noisy and no prediction."""
    if metric.needs == "log_probs":
        return
    pairs = _pairs(metric.needs)
    found = {name: metric.compute(pair) for name, pair in pairs.items()}
    means = {name: float(np.mean(values)) for name, values in found.items()}
    for name in ("perfect", "noisy"):
        if not np.isfinite(means[name]):
            yield "has no value of conditions in which many genes respond"
            return
    if not np.array_equal(metric.compute(pairs["noisy"]), found["noisy"]):
        yield "gives other values when it is asked again"
    if np.isfinite(metric.best) and not np.allclose(found["perfect"], metric.best, atol=1e-6):
        best = means["perfect"]
        yield f"gives a perfect prediction {best:g}, and says that {metric.best:g} is best"
    if metric.sign * (means["perfect"] - means["noisy"]) <= 0:
        more = "more" if metric.higher_is_better else "less"
        yield f"says that {more} is better, and prefers a noisy prediction to a perfect one"
    if not np.allclose(found["turned"], found["noisy"], rtol=1e-6, atol=1e-9):
        yield "depends on the order of genes"
    if "zeros" not in found:
        return
    if metric.zeros is not None and not np.isclose(means["zeros"], metric.zeros, atol=1e-6):
        yield f"gives zeros {means['zeros']:g}, and says {metric.zeros:g}"
    if metric.scale_free and not np.allclose(found["doubled"], found["noisy"], atol=1e-9):
        yield "says that it is scale_free, and a doubled prediction gets another value"
    alone = np.concatenate([metric.compute(pair) for pair in pairs["noisy"].blocks()])
    if not metric.across and not np.allclose(alone, found["noisy"], atol=1e-9):
        yield "compares conditions with each other, which across = True has to say"


def _pairs(needs: str) -> dict[str, Any]:
    """A truth with predictions: perfect, noisy, with genes in another order, doubled, zeros."""
    rng = np.random.default_rng(1)
    if needs == "cells":
        truth = rng.gamma(2.0, size=(50, 12))
        other = 1 + 2 * rng.gamma(3.0, size=(40, 12))
        turned = cell_pair(truth[:, ::-1], other[:, ::-1], "this")
        perfect = cell_pair(truth, truth.copy(), "this")
        return {"perfect": perfect, "noisy": cell_pair(truth, other, "this"), "turned": turned}
    # Over 8 conditions, so that they stand in two blocks; a third of the genes responds strongly.
    truth = rng.normal(size=(12, 240))
    truth[:, ::3] *= 12
    noisy = truth + 100 * rng.normal(size=truth.shape)
    groups, places = np.array(["a", "b", "c"] * 4), np.array(["p", "q"] * 6)
    mean = rng.normal(size=truth.shape)

    def pair(predicted: np.ndarray, genes: slice = slice(None)) -> Pair:
        true, other = (Values(values[:, genes].copy()) for values in (truth, predicted))
        given = mean[:, genes] if needs == "reference" else None
        return Pair(true, other, groups, given, places if needs == "layout" else None)

    return {
        "perfect": pair(truth),
        "noisy": pair(noisy),
        "turned": pair(noisy, slice(None, None, -1)),
        "doubled": pair(2 * noisy),
        "zeros": pair(np.zeros_like(truth)),
    }
