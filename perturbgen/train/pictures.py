"""A page of real beside generated cells: maps of the latent space, counts of genes.

Its controls are ``cells.html`` (a paragraph a section), their script ``cells.js``.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.page import PALETTE, Page
from perturbgen.data import CountStore
from perturbgen.train.gauges import LatentSpace
from perturbgen.train.heldout import CellJudge, drawn_like

if TYPE_CHECKING:
    from scipy import sparse

    from perturbgen.train.generative import TrainedRun

_CELLS: Final = 2400  # a side
_LISTED: Final = 40  # conditions to choose from: those of most cells
_OF_EACH: Final = 40  # cells of a listed condition, so that its counts say something
_GENES: Final = 200
_COUNTED: Final = 1000  # genes, the most counted, of which logarithms are taken
_AXES: Final = 6
_COMPOUNDS: Final = 20  # with a colour of their own; others are grey
_COMPONENTS: Final = 30  # that a forest looks at
_LEAST, _MOST = 100, 1000  # cells a side for a forest to learn from


def cells_page(
    run: TrainedRun,
    cells: CountStore,
    *,
    states: pd.DataFrame | None = None,
    title: str = "Real and generated cells",
    seed: int = 0,
) -> Page:
    """Real cells beside as many that the model draws for the same conditions and sizes.

    ``cells`` are opened by the run (``run.open_cells``). ``states`` are columns about cells, by
    their names in obs, that may colour the maps: text or numbers, such as a planted activation.
    """
    sides = _Sides.of(run, cells, seed=seed)
    told = _told_apart(sides, seed=seed)
    space = LatentSpace.read(run.path)
    page = Page(title, _lead(run, sides), answer=_answer(told, len(sides.obs)))
    if space is not None and (note := space.sentence()):
        page.warning(f"{note}.")
    here = files("perturbgen.train")
    maps, counts = (here / "cells.html").read_text("utf-8").rstrip().split("\n\n")
    page.section(
        "Latent space",
        "Principal components of the latent points. A model that is given a condition keeps little "
        "of it here: what is seen is how cells of one condition differ.",
    )
    page.block(maps)
    page.section("Counts of the gene")
    page.block(counts)
    page.section(
        "Cell types",
        "Real / generated, per cell; correlation of the genes' mean log counts on both sides.",
    )
    page.table(_by_type(sides))
    palette = ",".join(f'"{colour}"' for colour in PALETTE)
    data = Page.json(_payload(sides, states, compound="compound"))
    page.block(
        f'<script type="application/json" id="data">{data}</script>'
        f"<script>const PALETTE = [{palette}];</script>"
        f"<script>{(here / 'cells.js').read_text('utf-8')}</script>",
        draws=True,
    )
    return page


@dataclass(frozen=True)
class _Sides:
    """Counts (cells, genes) and latent points of real cells, and of those drawn like them."""

    real: sparse.csr_matrix
    generated: sparse.csr_matrix
    latents: tuple[np.ndarray, np.ndarray]
    obs: pd.DataFrame
    genes: pd.Index
    conditions: pd.Series
    kept: float  # share of the cells' number that is shown

    @classmethod
    def of(cls, run: TrainedRun, cells: CountStore, *, seed: int) -> _Sides:
        from anndata import AnnData

        named = [name for name in run.settings.conditions if name in ("cell_type", "compound")]
        by = named or list(run.settings.conditions)[:2]
        labels = cells.obs[by].astype(str)
        condition = labels.agg(" | ".join, axis=1) if by else pd.Series("all", cells.obs.index)
        chosen = _chosen(condition, seed=seed)
        store = cells.subset(chosen)
        generated = drawn_like(run.model, store, seed=seed)
        var = pd.DataFrame(index=store.var_names)
        drawn = run.of_cells(CountStore.from_adata(AnnData(generated, obs=store.obs, var=var)))
        latents = CellJudge(run, store).latents(), CellJudge(run, drawn).latents()
        return cls(
            store.counts(),
            generated,
            latents,
            store.obs,
            store.var_names,
            condition.iloc[chosen],
            len(chosen) / len(cells),
        )

    @cached_property
    def counted(self) -> np.ndarray:
        """Positions of the most counted genes, in their own order."""
        total = np.asarray(self.real.sum(axis=0)).ravel()
        return np.sort(np.argsort(-total, kind="stable")[:_COUNTED])

    @cached_property
    def logs(self) -> tuple[np.ndarray, np.ndarray]:
        """log(1 + counts per ten thousand) of the most counted genes (cells, genes), both sides."""
        found = []
        for counts in (self.real, self.generated):
            size = np.maximum(np.asarray(counts.sum(axis=1)), 1).astype(np.float32)
            found.append(np.log1p(1e4 * counts[:, self.counted].toarray() / size))
        return found[0], found[1]


def _chosen(condition: pd.Series, *, seed: int) -> np.ndarray:
    """Positions of cells: some of each of the largest conditions, and of all at random."""
    order = np.random.default_rng(seed).permutation(len(condition))
    shuffled = condition.iloc[order]
    rank = shuffled.groupby(shuffled, sort=False).cumcount().to_numpy()
    listed = shuffled.isin(condition.value_counts().index[:_LISTED]).to_numpy()
    first = order[listed & (rank < _OF_EACH)]
    rest = order[~(listed & (rank < _OF_EACH))]
    return np.sort(np.concatenate([first, rest[: max(0, _CELLS - len(first))]]))


def _told_apart(sides: _Sides, *, seed: int) -> float | None:
    """AUC of a forest that tells real from generated cells, out of sample; None with few cells.

    It looks at principal components of log counts: what it can use is more than means.
    """
    from sklearn.decomposition import PCA
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    if len(sides.obs) < _LEAST:
        return None
    chosen = np.random.default_rng(seed).permutation(len(sides.obs))[:_MOST]
    cells, values = len(chosen), np.vstack([side[chosen] for side in sides.logs])
    parts = min(_COMPONENTS, values.shape[1] - 1)
    points = PCA(parts, svd_solver="randomized", random_state=seed).fit_transform(values)
    sides_of = np.repeat([0, 1], cells)
    forest = RandomForestClassifier(60, min_samples_leaf=5, random_state=seed)
    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    found = cross_val_predict(forest, points, sides_of, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(sides_of, found))


def _answer(auc: float | None, cells: int) -> str:
    if auc is None:
        return f"{cells} cells are too few to say whether generated cells look like real ones."
    if auc < 0.6:
        word = "hardly told from"
    else:
        word = "often told from" if auc < 0.8 else "nearly always told from"
    return (
        f"Generated cells are {word} real ones: a forest that learns from the counts of up to "
        f"{_MOST:,} a side has an AUC of {auc:.2f} (0.5 is a coin, 1 always right)."
    )


def _lead(run: TrainedRun, sides: _Sides) -> str:
    name, kind = run.path.name, run.settings.model.kind
    return (
        f"{len(sides.obs):,} cells ({sides.kept:.0%} of those given) and as many drawn by "
        f"{name}, a {kind}, for the same conditions and sizes."
    )


def _by_type(sides: _Sides) -> list[dict[str, Any]]:
    """A row for each cell type (or for all): cells, counts, zeros, correlation of means."""
    real, generated = sides.logs
    kinds = sides.obs["cell_type"].astype(str) if "cell_type" in sides.obs else None
    names = ["all"] if kinds is None else sorted(kinds.unique())
    rows = []
    for name in names:
        mine = np.ones(len(sides.obs), bool) if kinds is None else (kinds == name).to_numpy()
        pair = sides.real[mine], sides.generated[mine]
        depth = [float(np.median(np.asarray(counts.sum(axis=1)))) for counts in pair]
        genes = [counts.nnz / max(counts.shape[0], 1) for counts in pair]
        means = real[mine].mean(axis=0), generated[mine].mean(axis=0)
        rows.append(
            {
                "cell type": name,
                "cells": int(mine.sum()),
                "median counts": " / ".join(f"{value:,.0f}" for value in depth),
                "genes seen": " / ".join(f"{value:,.0f}" for value in genes),
                "correlation": round(float(np.corrcoef(*means)[0, 1]), 3),
            }
        )
    return rows


def _payload(sides: _Sides, states: pd.DataFrame | None, *, compound: str) -> dict[str, Any]:
    """Everything that the page's script shows, ready for JSON."""
    codes, names = pd.factorize(sides.conditions, sort=True)
    columns = _shown_genes(sides)
    maps = _components(*sides.latents)
    labels, values = _labels(sides, states, compound)
    record: dict[str, Any] = {
        "conditions": list(names),
        "condition": codes.tolist(),
        "opens": _opening(labels, values[0], maps[0]),
        "listed": [int(c) for c in pd.Series(codes).value_counts(sort=True).index[:_LISTED]],
        "genes": [str(sides.genes[i]) for i in columns],
        "axes": [f"component {i + 1}" for i in range(maps[0].shape[1])],
        "labels": labels,
    }
    pairs = zip(("real", "generated"), (sides.real, sides.generated), maps, values, strict=True)
    for side, counts, points, coloured in pairs:
        size = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
        few = np.minimum(counts[:, columns].toarray(), 255)
        record[side] = {
            "coordinates": Page.packed(points.T),
            "counts": Page.packed(few.T, "u1"),
            "sizes": Page.packed(size, "<f4"),
            "labels": coloured,
        }
    return record


def _shown_genes(sides: _Sides) -> np.ndarray:
    """The genes that differ most between conditions, most of all first."""
    means = pd.DataFrame(sides.logs[0]).groupby(sides.conditions.to_numpy()).mean()
    return sides.counted[np.argsort(-means.var(axis=0).to_numpy(), kind="stable")[:_GENES]]


def _components(real: np.ndarray, generated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latent points in the directions in which real cells vary most, both sides in the same."""
    middle = real.mean(axis=0)
    directions = np.linalg.svd(real - middle, full_matrices=False)[2][:_AXES].T
    return (real - middle) @ directions, (generated - middle) @ directions


def _labels(
    sides: _Sides, states: pd.DataFrame | None, compound: str
) -> tuple[list[dict[str, Any]], tuple[list[Any], list[Any]]]:
    """What may colour the maps: its name (and names of its values), and the cells' values."""
    about: list[dict[str, Any]] = []
    real: list[Any] = []
    generated: list[Any] = []
    usual = [n for n in ("cell_type", compound, "plate", "donor") if n in sides.obs]
    for name in usual:
        text = sides.obs[name].astype(str)
        few = text.where(text.isin(text.value_counts().index[:_COMPOUNDS]), "other")
        names = sorted(set(few) - {"other"}) + (["other"] if (few == "other").any() else [])
        title = f"{name} (top {_COMPOUNDS})" if "other" in names else name
        about.append({"name": title, "names": names})
        codes = few.map({value: i for i, value in enumerate(names)}).tolist()
        real.append(codes)
        generated.append(codes)
    for state, column in ({} if states is None else dict(states.items())).items():
        values, called = column.reindex(sides.obs.index), None
        if not pd.api.types.is_numeric_dtype(values):
            found, kinds = pd.factorize(values.astype(str), sort=True)
            values, called = pd.Series(found, values.index, dtype=float), list(kinds)[:_COMPOUNDS]
        about.append({"name": str(state), "names": called, "borrowed": True})
        theirs = _borrowed(sides.latents, values.to_numpy(float), whole=called is not None)
        for side, numbers in ((real, values.to_numpy(float)), (generated, theirs)):
            side.append([None if np.isnan(v) else round(float(v), 4) for v in numbers])
    return about, (real, generated)


def _borrowed(
    latents: tuple[np.ndarray, np.ndarray], values: np.ndarray, *, whole: bool
) -> np.ndarray:
    """For generated cells the mean (or the commonest) value of the nearest real ones.

    None where most of those have none: a cell that does not cycle has no phase.
    """
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=min(15, len(values))).fit(latents[0])
    found = values[nearest.kneighbors(latents[1], return_distance=False)]
    known = np.isfinite(found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows of NaN alone
        taken = np.nanmean(found, axis=1)
        if whole:
            kinds = np.unique(values[np.isfinite(values)])
            votes = (found[:, :, None] == kinds).sum(axis=1)
            taken = kinds[votes.argmax(axis=1)] if len(kinds) else taken
    return np.where(known.mean(axis=1) > 0.5, taken, np.nan)


def _opening(
    labels: list[dict[str, Any]], values: list[Any], points: np.ndarray
) -> tuple[int, int, int]:
    """The label that a map of points (cells, axes) opens on, and its two axes.

    The state that follows an axis most closely, of those that most cells have; else the first label
    on the first two axes.
    """
    best, axes = 0, [0, min(1, points.shape[1] - 1)]
    strongest = 0.0
    for i, (label, numbers) in enumerate(zip(labels, values, strict=True)):
        if "borrowed" not in label or label["names"]:
            continue
        y = np.array([np.nan if v is None else v for v in numbers], float)
        known = np.isfinite(y)
        if known.mean() < 0.9 or y[known].std() == 0:
            continue
        tied = [abs(np.corrcoef(column[known], y[known])[0, 1]) for column in points.T]
        order = np.argsort(np.nan_to_num(tied))[::-1]
        if tied[order[0]] > strongest:
            strongest, best = tied[order[0]], i
            axes = [int(order[0]), int(order[min(1, len(order) - 1)])]
    return best, axes[0], axes[1]
