"""What a metric of somebody else promises, tried on small tables and cells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from perturbgen.evaluate.cells import cell_pair
from perturbgen.evaluate.values import Metric, Pair, Values

_SAME: Final = slice(None)
_ORDER: Final = np.random.default_rng(2).permutation(12)  # of the conditions below


def metric_breaches(metric: Metric) -> Iterator[str]:
    """A truth with a perfect, a noisy and no prediction."""
    if metric.needs in ("log_probs", "counts"):  # no tables or cells to try them on
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
    if not _equal(found["turned"], found["noisy"]):
        yield "depends on the order of genes" + (" or of cells" if metric.needs == "cells" else "")
    if "zeros" not in found:
        return
    yield from _of_order(metric, pairs, found)
    if metric.zeros is not None and not np.isclose(means["zeros"], metric.zeros, atol=1e-6):
        yield f"gives zeros {means['zeros']:g}, and says {metric.zeros:g}"
    if metric.scale_free and not np.allclose(found["doubled"], found["noisy"], atol=1e-9):
        yield "says that it is scale_free, and a doubled prediction gets another value"
    alone = np.concatenate([metric.compute(pair) for pair in pairs["noisy"].blocks()])
    ordered = _equal(found["rows"], found["noisy"][_ORDER])
    # What depends on the order of rows is told so: across = True would not mend it.
    if ordered and not metric.across and not np.allclose(alone, found["noisy"], atol=1e-9):
        yield "compares conditions with each other, which across = True has to say"


def _of_order(metric: Metric, pairs: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    """Rows and genes stand in another order, among them equal values, and all of them 0."""
    if not _equal(found["rows"], found["noisy"][_ORDER]):
        yield "depends on the order of rows: a condition's value changes with where it stands"
    for name, what in (("tied", "are equal"), ("zeros", "of a prediction are 0")):
        turned = metric.compute(pairs[f"{name}, turned"])
        if _equal(found["turned"], found["noisy"]) and not _equal(turned, found[name]):
            yield (
                f"depends on the order of genes where values {what}: equal values share "
                "what they get, as scipy.stats.rankdata does, which argsort does not"
            )
            break


def _equal(one: Any, other: Any) -> bool:
    return np.allclose(one, other, rtol=1e-6, atol=1e-9, equal_nan=True)


def _pairs(needs: str) -> dict[str, Any]:
    """A truth with predictions: perfect, noisy, with genes or rows in another order, doubled, of
    few values, zeros.
    """
    rng = np.random.default_rng(1)
    if needs == "cells":
        truth = rng.gamma(2.0, size=(50, 12))
        other = 1 + 2 * rng.gamma(3.0, size=(40, 12))
        turned = cell_pair(truth[::-1, ::-1], other[::-1, ::-1], "this")
        perfect = cell_pair(truth, truth.copy(), "this")
        return {"perfect": perfect, "noisy": cell_pair(truth, other, "this"), "turned": turned}
    # Over 8 conditions, so that they stand in two blocks; a third of the genes responds strongly.
    truth = rng.normal(size=(12, 240))
    truth[:, ::3] *= 12
    noisy = truth + 100 * rng.normal(size=truth.shape)
    groups, places = np.array(["a", "b", "c"] * 4), np.array(["p", "q"] * 6)
    mean = rng.normal(size=truth.shape)

    def pair(
        predicted: np.ndarray, genes: Any = _SAME, rows: Any = _SAME, measured: np.ndarray = truth
    ) -> Pair:
        true, other = (Values(values[rows][:, genes].copy()) for values in (measured, predicted))
        given = mean[rows][:, genes] if needs == "reference" else None
        where = places[rows] if needs == "layout" else None
        return Pair(true, other, groups[rows], given, where)

    # As tables that were limited or rounded: many equal values, a condition without any effect.
    shuffled, zeros = rng.permutation(truth.shape[1]), np.zeros_like(truth)
    tied, steps = (np.clip(np.round(table), -4, 4) for table in (noisy / 60, truth))
    steps[0] = 0
    return {
        "perfect": pair(truth),
        "noisy": pair(noisy),
        "turned": pair(noisy, slice(None, None, -1)),
        "rows": pair(noisy, rows=_ORDER),
        "doubled": pair(2 * noisy),
        "tied": pair(tied, measured=steps),
        "tied, turned": pair(tied, shuffled, measured=steps),
        "zeros": pair(zeros),
        "zeros, turned": pair(zeros, shuffled),
    }
