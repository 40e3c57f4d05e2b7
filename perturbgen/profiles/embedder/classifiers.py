"""Small classifiers that probe an embedding: logistic regression, a plain network, the soft-ordering 1D-CNN.

Each fit returns a function from rows (n, width) to log-probabilities (n, classes).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, Any]
Classify = Callable[[Array], Array]

PENALTIES: Final = (1e-3, 1e-2, 1e-1, 1.0)  # inverse ones, as scikit-learn counts them
NETWORKS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "DNN": ("mlp", {"widths": (256, 128), "dropout": 0.1}),
    "1D-CNN": ("soft_ordering", {"channels": 32, "places": 16, "dropout": 0.1}),
}
EPOCHS, BATCH, RATE, DECAY = 30, 128, 1e-3, 1e-2


def fit_ridge(x: Array, codes: Array, held: Array, *, classes: int) -> Classify:
    """Logistic regression with the penalty that serves the ``held`` training rows best, then fitted on all."""
    chosen = PENALTIES[0]
    if 0 < held.sum() < len(held) and len(np.unique(codes[~held])) > 1:
        right = [
            (logistic(x[~held], codes[~held], c, classes)(x[held]).argmax(1) == codes[held]).mean() for c in PENALTIES
        ]
        chosen = PENALTIES[int(np.argmax(right))]
    return logistic(x, codes, chosen, classes)


def logistic(x: Array, codes: Array, penalty: float, classes: int) -> Classify:
    """Multinomial logistic regression; classes that are not among the rows have probability zero."""
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(codes)) == 1:
        only = np.where(np.arange(classes) == codes[0], 0.0, -np.inf)
        return lambda rows: np.tile(only, (len(rows), 1))
    fitted = LogisticRegression(C=penalty, max_iter=2000, tol=1e-3).fit(x, codes)

    def classify(rows: Array) -> Array:
        out = np.full((len(rows), classes), -np.inf)
        out[:, fitted.classes_] = fitted.predict_log_proba(rows)
        return out

    return classify


def fit_network(x: Array, codes: Array, kind: str, *, classes: int, seed: int) -> Classify:
    """A network trained by cross-entropy for a fixed number of epochs; nothing is chosen on what it is tested on."""
    import torch
    from torch.nn.functional import cross_entropy, log_softmax

    from perturbgen.nn.encoders import make_encoder

    rows, target = torch.from_numpy(np.ascontiguousarray(x, np.float32)), torch.from_numpy(codes.astype(np.int64))
    encoder, options = NETWORKS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_encoder(encoder, rows.shape[1], classes, **options)
        optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
        for _ in range(EPOCHS):
            for some in torch.randperm(len(rows)).tensor_split(max(1, len(rows) // BATCH)):
                optimiser.zero_grad(set_to_none=True)
                cross_entropy(network(rows[some]), target[some]).backward()
                optimiser.step()
    network.eval()

    def classify(new: Array) -> Array:
        with torch.no_grad():
            return log_softmax(network(torch.from_numpy(np.ascontiguousarray(new, np.float32))), dim=1).numpy()

    return classify
