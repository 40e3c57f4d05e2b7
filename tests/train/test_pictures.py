"""The page of real beside generated cells."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.page import Page
from perturbgen.train import TrainedRun, cells_page, load_run
from perturbgen.train.pictures import _borrowed, _chosen, _Sides, _told_apart

CELLS, GENES = 90, 15


@pytest.fixture(scope="module")
def trained(finished: Path) -> TrainedRun:
    return load_run(next((finished / "runs").iterdir()))


@pytest.fixture(scope="module")
def page(trained: TrainedRun, finished: Path) -> Page:
    store = trained.open_cells(finished / "cells.h5ad")
    states = pd.DataFrame(
        {"phase": np.where(np.arange(CELLS) % 2, "S", "G1"), "activation": np.arange(CELLS) / 90.0},
        index=store.obs.index,
    )
    states.loc[states.index[:3], "activation"] = np.nan
    # joined by name, not by order
    return cells_page(trained, store, states=states[::-1])


def embedded(page: Page) -> dict[str, Any]:
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.html())
    found: dict[str, Any] = json.loads(text)
    return found


def test_what_is_shown_of_real_cells_is_what_was_counted(
    page: Page, trained: TrainedRun, finished: Path
) -> None:
    data, store = embedded(page), trained.open_cells(finished / "cells.h5ad")
    genes = data["genes"]
    assert sorted(genes) == sorted(store.var_names)
    raw = np.frombuffer(base64.b64decode(data["real"]["counts"]), "u1").reshape(GENES, CELLS)
    counts = pd.DataFrame(store.counts().toarray(), columns=store.var_names)[genes]
    np.testing.assert_array_equal(raw.T, counts)
    sizes = np.frombuffer(base64.b64decode(data["real"]["sizes"]), "<f4")
    np.testing.assert_array_equal(sizes, store.counts().sum(axis=1).A1)
    labels = [
        f"{a} | {b}" for a, b in zip(store.obs["cell_type"], store.obs["compound"], strict=True)
    ]
    assert [data["conditions"][code] for code in data["condition"]] == labels
    # generated cells are others, of about the same size
    drawn = np.frombuffer(base64.b64decode(data["generated"]["counts"]), "u1").reshape(GENES, CELLS)
    assert (drawn != raw).any()
    assert float(drawn.sum()) == pytest.approx(float(raw.sum()), rel=0.2)


def test_states_colour_the_map_and_are_joined_by_name(page: Page) -> None:
    data = embedded(page)
    names = [label["name"] for label in data["labels"]]
    assert names == ["cell_type", "compound", "phase", "activation"]
    label, across, up = data["opens"]
    assert label == 3, "the state of most cells, which is a number"
    assert across != up
    phase, activation = data["real"]["labels"][2:]
    assert phase == [i % 2 for i in range(CELLS)]
    assert activation[:4] == [None, None, None, pytest.approx(3 / 90, abs=1e-4)]
    borrowed = data["generated"]["labels"][3]
    assert all(3 / 90 <= value <= 1 for value in borrowed)
    assert set(data["generated"]["labels"][2]) <= {0, 1}


def test_few_cells_are_said_to_be_too_few(page: Page) -> None:
    assert page.answer.startswith("90 cells are too few")
    assert "Cell types" in page.html()


def sides(real: np.ndarray, generated: np.ndarray) -> _Sides:
    from scipy import sparse

    obs = pd.DataFrame({"cell_type": "B"}, index=[f"c{i}" for i in range(len(real))])
    points = np.zeros((len(real), 2))
    matrices = [sparse.csr_matrix(counts) for counts in (real, generated)]
    genes = pd.Index([f"g{i}" for i in range(real.shape[1])])
    return _Sides(*matrices, (points, points), obs, genes, obs["cell_type"], 1.0)


def test_a_forest_tells_what_differs_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    level = rng.gamma(1, 5, 40)
    one, other = rng.poisson(level, (300, 40)), rng.poisson(level, (300, 40))
    assert _told_apart(sides(one, other), seed=0) == pytest.approx(0.5, abs=0.08)
    # the same means, but genes that vary together
    shared = rng.gamma(2, 0.5, (300, 1)) ** np.where(np.arange(40) % 2, 1, -0.3)
    together = rng.poisson(level * shared / shared.mean(axis=0))
    assert _told_apart(sides(together, other), seed=0) > 0.8


def test_large_conditions_have_cells_enough_to_look_at() -> None:
    condition = pd.Series(["a"] * 50_000 + ["b"] * 60 + ["c"] * 3)
    chosen = _chosen(condition, seed=0)
    assert len(set(chosen)) == len(chosen) == 2400
    counts = condition.iloc[chosen].value_counts()
    assert counts["b"] >= 40
    assert counts["c"] == 3
    np.testing.assert_array_equal(_chosen(condition, seed=0), chosen)


def test_generated_cells_borrow_the_state_of_the_nearest_real_ones() -> None:
    real = np.repeat([[0.0, 0.0], [9.0, 9.0]], 20, axis=0)
    values = np.repeat([1.0, 5.0], 20)
    found = _borrowed((real, np.array([[0.1, 0.0], [8.0, 9.5]])), values, whole=False)
    assert found.tolist() == [1.0, 5.0]
    kinds = _borrowed((real, real[[0, -1]]), values, whole=True)
    assert kinds.tolist() == [1.0, 5.0]
    # a state that most of the neighbours do not have is not had by a generated cell
    values[:18] = np.nan
    assert np.isnan(_borrowed((real, real[:1]), values, whole=False)).all()
    nothing = _borrowed((real, real[:2]), np.full(40, np.nan), whole=False)
    assert np.isnan(nothing).all()
