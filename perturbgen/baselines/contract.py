"""What a baseline of somebody else promises, tried on a small table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from perturbgen.baselines.foreign import made, wrong_answer
from perturbgen.baselines.registry import REGISTRY
from perturbgen.core.errors import ConfigError
from perturbgen.core.extensions import Extension
from perturbgen.core.tables import CONDITION

_SEED = 20


def baseline_breaches(extension: Extension) -> Iterator[str]:
    """A DE table is learnt from, and other conditions are asked for."""
    entry = REGISTRY[extension.name]
    train, wanted, everything = _effects()
    given = {"truth": everything, "smiles": pd.Series("CCO", train.index.unique("compound"))}
    parts = {name: given[name] for name in (*entry.needs, *entry.uses) if name in given}
    lacking = [name for name in entry.needs if name not in parts]
    if lacking:
        yield f"needs {lacking[0]}, with which nothing is tried here"
        return
    settings = _defaults(entry.settings_class)
    if settings is None:
        yield "has settings without a default, so that its name alone makes nothing"
        return

    def answer(seed: int, table: pd.DataFrame, asked: pd.MultiIndex) -> Any:
        np.random.seed(seed)  # noqa: NPY002  of whoever draws from it, against what is promised
        with extension.blamed("fails to fit"):
            model = made(extension, entry.kind, settings, parts)
            model = model.fit(table, rng=np.random.default_rng(seed // 10)) or model
        with extension.blamed("fails to predict"):
            return model.predict(asked)

    kept, asked = train.copy(), wanted.copy()
    first = answer(_SEED, kept, asked)
    if not (kept.equals(train) and kept.index.equals(train.index) and asked.equals(wanted)):
        yield "changes the table or the conditions that it is given"
    wrong = wrong_answer(first, wanted, train.columns)
    if wrong:
        yield wrong
        return
    if not (first.index.equals(wanted) and first.columns.equals(train.columns)):
        yield "predicts in another order than asked: rows as conditions, columns as genes"
    first = first.loc[wanted, train.columns]
    # Another state of numpy's global generator, the same generator given.
    if not answer(_SEED + 1, train.copy(), wanted).loc[wanted, train.columns].equals(first):
        yield "gives other values with the same rng: what is random comes from the rng of fit alone"
        return
    drawn = answer(_SEED + 10, train.copy(), wanted).loc[wanted, train.columns]
    if not drawn.equals(first):
        if not entry.random:
            yield "says random = False, and gives other values with another rng"
        return  # a draw may depend on the order of the rows
    order = np.random.default_rng(0).permutation(len(train))
    turned = answer(_SEED, train.iloc[order, ::-1], wanted[::-1])
    wrong = wrong_answer(turned, wanted, train.columns)
    if wrong or not np.allclose(turned.loc[wanted, train.columns], first, rtol=1e-6, atol=1e-8):
        yield "depends on the order of rows or genes: what belongs together is said by labels"


def _defaults(kind: Any) -> Any:
    try:
        return kind.load()
    except ConfigError:
        return None


def _effects() -> tuple[pd.DataFrame, pd.MultiIndex, pd.DataFrame]:
    """A table to learn from, conditions to predict (of an unknown compound, too), and all rows."""
    rng = np.random.default_rng(1)
    labels = [[f"type {i}" for i in range(4)], [f"compound {i}" for i in range(7)]]
    index = pd.MultiIndex.from_product(labels, names=CONDITION)
    genes = pd.Index([f"gene {i}" for i in range(30)], name="gene")
    effects = rng.normal(size=(7, 30))[index.codes[1]] + rng.normal(size=(4, 30))[index.codes[0]]
    values = 2 * effects + rng.normal(size=effects.shape)
    table = pd.DataFrame(values, index, genes)
    withheld = np.zeros(len(table), bool)
    withheld[[0, 8, 19, 27]] = True
    strange = pd.MultiIndex.from_tuples([("type 1", "another"), ("elsewhere", "compound 2")])
    wanted = index[withheld][::-1].append(strange).set_names(CONDITION)
    everything = pd.concat([table, pd.DataFrame(0.0, strange.set_names(CONDITION), genes)])
    return table[~withheld], wanted, everything
