"""What a classifier reads from an embedding: mechanisms, or what should not be there, such as plates.

Profiles of one group (a perturbagen) are never on both sides: groups are dealt to folds, every fold is predicted by
classifiers trained on the others, and the predictions of all folds are scored together. Beside each result stand the
most frequent class and the same classifiers on shuffled classes.

Small classifiers that probe an embedding: logistic regression, a plain network, the soft-ordering 1D-CNN.

Each fit returns a function from rows (n, width) to log-probabilities (n, classes).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from perturbgen.core.console import track
from perturbgen.core.errors import SchemaError
from perturbgen.l1000.embedder.data import require_column

_Array = np.ndarray[Any, Any]
_Classify = Callable[[_Array], _Array]

_PENALTIES: Final = (1e-3, 1e-2, 1e-1, 1.0)  # inverse ones, as scikit-learn counts them
_NETWORKS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "DNN": ("mlp", {"widths": (256, 128), "dropout": 0.1}),
    "1D-CNN": ("soft_ordering", {"channels": 32, "places": 16, "dropout": 0.1}),
}
_EPOCHS, _BATCH, _RATE, _DECAY = 30, 128, 1e-3, 1e-2


def _fit_ridge(x: _Array, codes: _Array, held: _Array, *, classes: int) -> _Classify:
    """Logistic regression with the penalty that serves the ``held`` training rows best, then fitted on all."""
    chosen = _PENALTIES[0]
    if 0 < held.sum() < len(held) and len(np.unique(codes[~held])) > 1:
        right = [
            (_logistic(x[~held], codes[~held], c, classes)(x[held]).argmax(1) == codes[held]).mean()
            for c in _PENALTIES
        ]
        chosen = _PENALTIES[int(np.argmax(right))]
    return _logistic(x, codes, chosen, classes)


def _logistic(x: _Array, codes: _Array, penalty: float, classes: int) -> _Classify:
    """Multinomial logistic regression; classes that are not among the rows have probability zero."""
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(codes)) == 1:
        only = np.where(np.arange(classes) == codes[0], 0.0, -np.inf)
        return lambda rows: np.tile(only, (len(rows), 1))
    fitted = LogisticRegression(C=penalty, max_iter=2000, tol=1e-3).fit(x, codes)

    def classify(rows: _Array) -> _Array:
        out = np.full((len(rows), classes), -np.inf)
        out[:, fitted.classes_] = fitted.predict_log_proba(rows)
        return out

    return classify


def _fit_network(x: _Array, codes: _Array, kind: str, *, classes: int, seed: int) -> _Classify:
    """A network trained by cross-entropy for a fixed number of epochs; nothing is chosen on what it is tested on."""
    import torch
    from torch.nn.functional import cross_entropy, log_softmax

    from perturbgen.nn.encoders import make_encoder

    rows, target = (
        torch.from_numpy(np.ascontiguousarray(x, np.float32)),
        torch.from_numpy(codes.astype(np.int64)),
    )
    encoder, options = _NETWORKS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_encoder(encoder, rows.shape[1], classes, **options)
        optimiser = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)
        for _ in range(_EPOCHS):
            for some in torch.randperm(len(rows)).tensor_split(max(1, len(rows) // _BATCH)):
                optimiser.zero_grad(set_to_none=True)
                cross_entropy(network(rows[some]), target[some]).backward()
                optimiser.step()
    network.eval()

    def classify(new: _Array) -> _Array:
        with torch.no_grad():
            return log_softmax(
                network(torch.from_numpy(np.ascontiguousarray(new, np.float32))), dim=1
            ).numpy()

    return classify


_Kind = Literal["logistic", "DNN", "1D-CNN"]
KINDS: Final[tuple[_Kind, ...]] = ("logistic", "DNN", "1D-CNN")
_FOLDS: Final = 5
_MOST: Final = 10_000  # profiles that are probed, at most
MAJORITY: Final = "most frequent class"


@dataclass(frozen=True, eq=False)
class _ProbeTask:
    """Profiles to be classified: where they are, their class and their group as numbers, each (profiles,)."""

    rows: _Array
    codes: _Array
    groups: _Array
    names: tuple[str, ...]

    def shuffled(self, rng: np.random.Generator) -> _ProbeTask:
        """Classes given to the wrong groups; to the wrong profiles, where a group has several classes."""
        first = self.first()
        if (first[self.groups] == self.codes).all():
            return replace(self, codes=rng.permutation(first)[self.groups])
        return replace(self, codes=rng.permutation(self.codes))

    def first(self) -> _Array:
        """A class of each group, (groups,)."""
        return self.codes[np.unique(self.groups, return_index=True)[1]]

    def folds(self, rng: np.random.Generator) -> _Array:
        """The fold of each profile, (profiles,): the groups of a class are dealt in turn, so that all folds know it."""
        first = self.first()
        mixed = rng.permutation(len(first))
        order = mixed[np.argsort(first[mixed], kind="stable")]
        home = np.empty(len(first), int)
        home[order] = np.arange(len(first)) % min(_FOLDS, len(first))
        return home[self.groups]


def probe_task(
    samples: pd.DataFrame, column: str, group: str, *, rng: np.random.Generator, most: int = _MOST
) -> _ProbeTask:
    """The profiles whose class is known and occurs in two groups at least; of many, a random part."""
    require_column(samples, column)
    classes, groups = samples[column].astype(object), samples[group].astype(object)
    rows = np.flatnonzero(
        (classes.notna() & (classes.astype(str).str.strip() != "") & groups.notna()).to_numpy()
    )
    rows = np.sort(rng.permutation(rows)[:most])
    table = pd.DataFrame(
        {"class": classes.iloc[rows].astype(str), "group": groups.iloc[rows].astype(str)}
    )
    spread = table.groupby("class")["group"].nunique()
    kept = table["class"].isin(spread.index[spread >= 2]).to_numpy()
    if table["class"][kept].nunique() < 2:
        raise SchemaError(
            f"{(spread >= 2).sum()} of {len(spread)} values of {column!r} occur in two {group}s or more",
            expected="two at least: a class is learned from some groups and tested on others",
            cause=f"few profiles in this part, or no {column} in the samples",
            fix="evaluate a larger part, or another column",
        )
    table, rows = table[kept], rows[kept]
    codes, names = pd.factorize(table["class"], sort=True)
    return _ProbeTask(
        rows, codes, pd.factorize(table["group"], sort=True)[0], tuple(map(str, names))
    )


def probe(
    inputs: Mapping[str, _Array], task: _ProbeTask, *, seed: int, kinds: tuple[_Kind, ...] = KINDS
) -> pd.DataFrame:
    """A line for each input (all rows, width) and classifier; the first input is also probed for shuffled classes.

    Columns: share of profiles classified rightly (top-1), its mean over classes (balanced), macro-F1, and top-1 of
    whole groups by the mean of their profiles' log-probabilities.
    """
    order, shuffling = (np.random.default_rng([seed, part]) for part in range(2))
    fold, shuffled = task.folds(order), task.shuffled(shuffling)
    first = next(iter(inputs))
    plans = [(name, kind, task, fold) for name in inputs for kind in kinds]
    plans += [(first, kind, shuffled, shuffled.folds(order)) for kind in kinds]
    rows = [{"input": "none", "classifier": MAJORITY, **_scores(_most_frequent(task, fold), task)}]
    for name, kind, what, where in track(plans, "probes"):
        found = _predicted(inputs[name][task.rows], what, where, kind, seed=seed)
        shown = name if what is task else f"{name}, shuffled"
        rows.append({"input": shown, "classifier": kind, **_scores(found, what)})
    return pd.DataFrame(rows)


def _predicted(
    vectors: _Array, task: _ProbeTask, fold: _Array, kind: _Kind, *, seed: int
) -> _Array:
    """Log-probabilities (profiles, classes), each profile's by a classifier that saw neither it nor its group."""
    vectors = np.asarray(vectors, np.float32)
    out = np.empty((len(vectors), len(task.names)), np.float32)
    for number in np.unique(fold):
        train = fold != number
        x = _standardised(vectors, train)
        if kind == "logistic":
            inner = task.groups[train]
            held = np.isin(
                inner, np.random.default_rng([seed, number]).permutation(np.unique(inner))[::4]
            )
            classify = _fit_ridge(x[train], task.codes[train], held, classes=len(task.names))
        else:
            classify = _fit_network(
                x[train], task.codes[train], kind, classes=len(task.names), seed=seed
            )
        out[~train] = classify(x[~train])
    return out


def _standardised(vectors: _Array, train: _Array) -> _Array:
    """Mean 0 and SD 1 over training rows; a constant feature is 0."""
    sd = vectors[train].std(axis=0)
    return (vectors - vectors[train].mean(axis=0)) * np.where(
        sd > 1e-6, 1 / np.where(sd > 1e-6, sd, 1), 0
    )


def _most_frequent(task: _ProbeTask, fold: _Array) -> _Array:
    """As log-probabilities: all belongs to the class that has most profiles in the other folds."""
    out = np.full((len(fold), len(task.names)), -np.inf)
    for number in np.unique(fold):
        counts = np.bincount(task.codes[fold != number], minlength=len(task.names))
        out[fold == number, counts.argmax()] = 0
    return out


def _scores(log_probabilities: _Array, task: _ProbeTask) -> dict[str, float]:
    """Top-1, balanced accuracy, macro-F1; top-1 of groups, counted for groups of one class."""
    confusion = np.zeros((len(task.names), len(task.names)))
    np.add.at(confusion, (task.codes, log_probabilities.argmax(axis=1)), 1)
    right, own, told = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return {
        "top-1": float(right.sum() / confusion.sum()),
        "balanced": float((right / own).mean()),
        "macro-F1": float((2 * right / (own + told)).mean()),
        "top-1 of groups": _of_groups(log_probabilities, task),
    }


def _of_groups(log_probabilities: _Array, task: _ProbeTask) -> float:
    """Share of groups whose profiles together point to their class; NaN where groups have several classes."""
    first = task.first()
    if not (first[task.groups] == task.codes).all():
        return float("nan")
    finite = np.maximum(log_probabilities, -1e6)
    sums = np.zeros((len(first), len(task.names)))
    np.add.at(sums, task.groups, finite)
    return float((sums.argmax(axis=1) == first).mean())
