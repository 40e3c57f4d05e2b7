"""What classifiers read from an embedding: mechanisms, or what should not be there, such as plates.

Logistic regression, a plain network and the soft-ordering 1D-CNN. Profiles of one group (a
perturbagen) are never on both sides: groups are dealt to folds, every fold is predicted by
classifiers trained on the others, and the predictions of all folds are scored together. Beside
each result stand the most frequent class and the same classifiers on shuffled classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from perturbgen.core.console import track
from perturbgen.core.errors import SchemaError
from perturbgen.core.tables import require_columns

_Kind = Literal["logistic", "DNN", "1D-CNN"]
KINDS: Final[tuple[_Kind, ...]] = ("logistic", "DNN", "1D-CNN")
MAJORITY = "most frequent class"

_Classify = Callable[[np.ndarray], np.ndarray]  # rows (n, width) to log-probabilities (n, classes)

_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # inverse ones, as scikit-learn counts them
_NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "DNN": ("mlp", {"widths": (256, 128), "dropout": 0.1}),
    "1D-CNN": ("soft_ordering", {"channels": 32, "places": 16, "dropout": 0.1}),
}
# Fixed: what is chosen on the tested profiles would count in the network's favour.
_EPOCHS, _BATCH, _RATE, _DECAY = 30, 128, 1e-3, 1e-2
_FOLDS = 5
_MOST = 10_000  # profiles that are probed, at most


@dataclass(frozen=True, eq=False)
class ProbeTask:
    """Profiles to be classified: rows, and classes and groups as numbers, each (profiles,)."""

    rows: np.ndarray
    codes: np.ndarray
    groups: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        samples: pd.DataFrame,
        column: str,
        group: str,
        *,
        rng: np.random.Generator,
        most: int = _MOST,
    ) -> ProbeTask:
        """Profiles whose class is known and is in two groups at least; of many, a random part."""
        require_columns(samples, [column], "the table of samples")
        table = samples[[column, group]].astype(object).set_axis(["class", "group"], axis=1)
        told = table.notna().all(axis=1) & table["class"].astype(str).str.strip().ne("")
        rows = np.sort(rng.permutation(np.flatnonzero(told.to_numpy()))[:most])
        table = table.iloc[rows].astype(str)
        spread = table.groupby("class")["group"].nunique()
        kept = table["class"].isin(spread.index[spread >= 2]).to_numpy()
        if table["class"][kept].nunique() < 2:
            raise SchemaError(
                f"{(spread >= 2).sum()} of {len(spread)} values of {column!r} occur in two "
                f"{group}s or more",
                expected="two at least: a class is learned from some groups and tested on others",
                cause=f"few profiles in this part, or no {column} in the samples",
                fix="evaluate a larger part, or another column",
            )
        table, rows = table[kept], rows[kept]
        codes, names = pd.factorize(table["class"], sort=True)
        kinds = pd.factorize(table["group"], sort=True)[0]
        return cls(rows, codes, kinds, tuple(map(str, names)))

    def shuffled(self, rng: np.random.Generator) -> ProbeTask:
        """Classes given to the wrong groups; to the wrong profiles, if a group has several."""
        first = self.first()
        whole = (first[self.groups] == self.codes).all()
        codes = rng.permutation(first)[self.groups] if whole else rng.permutation(self.codes)
        return replace(self, codes=codes)

    def first(self) -> np.ndarray:
        """A class of each group, (groups,)."""
        return self.codes[np.unique(self.groups, return_index=True)[1]]

    def folds(self, rng: np.random.Generator) -> np.ndarray:
        """The fold of each profile, (profiles,).

        The groups of a class are dealt in turn, so that all folds know it.
        """
        first = self.first()
        mixed = rng.permutation(len(first))
        order = mixed[np.argsort(first[mixed], kind="stable")]
        home = np.empty(len(first), int)
        home[order] = np.arange(len(first)) % min(_FOLDS, len(first))
        return home[self.groups]

    def probe(
        self, inputs: Mapping[str, np.ndarray], *, seed: int, kinds: tuple[_Kind, ...] = KINDS
    ) -> pd.DataFrame:
        """A line for each input (all rows, width) and classifier.

        The first input is also probed for shuffled classes. Columns: share of profiles classified
        rightly (top-1), its mean over classes (balanced), macro-F1, and top-1 of whole groups by
        the mean of their profiles' log-probabilities.
        """
        order, shuffling = (np.random.default_rng([seed, part]) for part in range(2))
        fold, shuffled = self.folds(order), self.shuffled(shuffling)
        first = next(iter(inputs))
        plans = [(name, kind, self, fold) for name in inputs for kind in kinds]
        plans += [(first, kind, shuffled, shuffled.folds(order)) for kind in kinds]
        frequent = np.full((len(fold), len(self.names)), -np.inf)  # the class that most others have
        for number in np.unique(fold):
            counts = np.bincount(self.codes[fold != number], minlength=len(self.names))
            frequent[fold == number, counts.argmax()] = 0
        rows = [{"input": "none", "classifier": MAJORITY, **_scores(frequent, self)}]
        for name, kind, what, where in track(plans, "probes"):
            found = _predict_withheld(inputs[name][self.rows], what, where, kind, seed=seed)
            shown = name if what is self else f"{name}, shuffled"
            rows.append({"input": shown, "classifier": kind, **_scores(found, what)})
        return pd.DataFrame(rows)


def _predict_withheld(
    vectors: np.ndarray, task: ProbeTask, fold: np.ndarray, kind: _Kind, *, seed: int
) -> np.ndarray:
    """Log-probabilities (profiles, classes), by classifiers that saw no profile of the group."""
    vectors = np.asarray(vectors, np.float32)
    out = np.empty((len(vectors), len(task.names)), np.float32)
    for number in np.unique(fold):
        train = fold != number
        sd = vectors[train].std(axis=0)
        scale = np.where(sd > 1e-6, 1 / np.where(sd > 1e-6, sd, 1), 0)  # a constant feature is 0
        x = (vectors - vectors[train].mean(axis=0)) * scale
        codes, classes = task.codes[train], len(task.names)
        if kind == "logistic":
            groups = task.groups[train]
            order = np.random.default_rng([seed, number]).permutation(np.unique(groups))
            held = np.isin(groups, order[::4])  # a quarter of the groups chooses the penalty
            classify = _fit_ridge(x[train], codes, held, classes=classes)
        else:
            classify = _fit_network(x[train], codes, kind, classes=classes, seed=seed)
        out[~train] = classify(x[~train])
    return out


def _fit_ridge(x: np.ndarray, codes: np.ndarray, held: np.ndarray, *, classes: int) -> _Classify:
    """Logistic regression with the penalty that serves the ``held`` rows best, fitted on all."""
    chosen = _PENALTIES[0]
    if 0 < held.sum() < len(held) and len(np.unique(codes[~held])) > 1:
        right = [
            (_logistic(x[~held], codes[~held], c, classes)(x[held]).argmax(1) == codes[held]).mean()
            for c in _PENALTIES
        ]
        chosen = _PENALTIES[int(np.argmax(right))]
    return _logistic(x, codes, chosen, classes)


def _logistic(x: np.ndarray, codes: np.ndarray, penalty: float, classes: int) -> _Classify:
    """Multinomial logistic regression; classes that are not among the rows have probability 0."""
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(codes)) == 1:  # which scikit-learn refuses
        only = np.where(np.arange(classes) == codes[0], 0.0, -np.inf)
        return lambda rows: np.tile(only, (len(rows), 1))
    fitted = LogisticRegression(C=penalty, max_iter=2000, tol=1e-3).fit(x, codes)

    def classify(rows: np.ndarray) -> np.ndarray:
        out = np.full((len(rows), classes), -np.inf)
        out[:, fitted.classes_] = fitted.predict_log_proba(rows)
        return out

    return classify


def _fit_network(
    x: np.ndarray, codes: np.ndarray, kind: str, *, classes: int, seed: int
) -> _Classify:
    """A network trained by cross-entropy for a fixed number of epochs."""
    import torch
    from torch.nn.functional import cross_entropy, log_softmax

    from perturbgen.nn.encoders import make_encoder

    rows = torch.from_numpy(np.ascontiguousarray(x, np.float32))
    target = torch.from_numpy(codes.astype(np.int64))
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

    def classify(new: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            asked = torch.from_numpy(np.ascontiguousarray(new, np.float32))
            return log_softmax(network(asked), dim=1).numpy()

    return classify


def _scores(log_probabilities: np.ndarray, task: ProbeTask) -> dict[str, float]:
    """Top-1, balanced, macro-F1, and top-1 of groups, NaN where one has several classes."""
    confusion = np.zeros((len(task.names), len(task.names)))
    np.add.at(confusion, (task.codes, log_probabilities.argmax(axis=1)), 1)
    right, own, told = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    first, of_groups = task.first(), float("nan")
    if (first[task.groups] == task.codes).all():
        sums = np.zeros((len(first), len(task.names)))
        # Finite, or one certain profile would outvote all others of its group.
        np.add.at(sums, task.groups, np.maximum(log_probabilities, -1e6))
        of_groups = float((sums.argmax(axis=1) == first).mean())
    return {
        "top-1": float(right.sum() / confusion.sum()),
        "balanced": float((right / own).mean()),
        "macro-F1": float((2 * right / (own + told)).mean()),
        "top-1 of groups": of_groups,
    }
