"""Small tables for the tests of this room."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd


def frame(values: object, *, prefix: str = "g") -> pd.DataFrame:
    """Conditions (cell_type, compound) x genes; even rows are B cells, odd rows T cells."""
    array = np.asarray(values, dtype=float)
    labels = [("B cells" if i % 2 == 0 else "T cells", f"c{i // 2}") for i in range(len(array))]
    index = pd.MultiIndex.from_tuples(labels, names=["cell_type", "compound"])
    return pd.DataFrame(
        array, index, pd.Index([f"{prefix}{j}" for j in range(array.shape[1])], name="gene")
    )


def experiment(
    conditions: int = 40, genes: int = 400, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Truth, an honest but noisy prediction, and the noise-free signal: strong and weak rows,
    heavy-tailed genes.
    """
    rng = np.random.default_rng(seed)
    strength = 0.5 + rng.gamma(2.0, 1.0, (conditions, 1))
    signal = rng.standard_t(4, (conditions, genes)) * strength + 0.3
    truth = signal + rng.normal(size=signal.shape)
    prediction = 0.6 * signal + 0.5 * rng.normal(size=signal.shape)
    return frame(truth), frame(prediction), frame(signal)


def told(truth: pd.DataFrame) -> dict[str, Any]:
    """All that any metric of tables needs to know: the mean perturbation, and two places."""
    layout = pd.Series(np.resize(["1A", "1B"], len(truth)), truth.index)
    return {"reference": truth.mean(), "layout": layout}
