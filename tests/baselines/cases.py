"""Every baseline that needs nothing but the table, with settings that are quick on a small one."""

from __future__ import annotations

from typing import Any

from perturbgen.baselines import Baseline, make

LOW_RANK: dict[str, Any] = {"components": 10, "encoded": 6, "transform": "none"}
QUICK: dict[str, dict[str, Any]] = {
    "zeros": {},
    "gene_mean": {},
    "compound_mean": {},
    "compound_median": {},
    "cell_type_mean": {},
    "additive": {},
    "shrunken_additive": {},
    "random_draw": {},
    "nearest_replicate": {},
    "bilinear_ridge": {"components": 5},
    "pls": {**LOW_RANK, "latent": 4},
    "kernel_ridge": LOW_RANK,
    "neighbours": {},
    "random_forest": {**LOW_RANK, "trees": 40},
    "xgboost": {**LOW_RANK, "trees": 30, "rate": 0.2},
    "xgboost_plain": {"trees": 3},
    "network": {**LOW_RANK, "epochs": 30, "hidden": 32, "seeds": 2, "rate": 0.02},
    "network_pseudolabels": {**LOW_RANK, "epochs": 30, "hidden": 32, "seeds": 2, "rate": 0.02},
    "transfer": {"transform": "none", "bands": (3, 8), "prior_components": 8},
    "nested": {
        "base": "kernel_ridge",
        "grid": {"ridge": [0.1, 1.0], "transform": ["none"]},
        "folds": 2,
    },
    "blend": {
        "members": ("shrunken_additive", "transfer"),
        "settings": {"transfer": {"transform": "none"}},
        "folds": 3,
    },
}
# Those that must beat the cell type's mean in a low-rank world; add a new model here.
MODELS = (
    "bilinear_ridge",
    "pls",
    "kernel_ridge",
    "neighbours",
    "random_forest",
    "xgboost",
    "network",
    "network_pseudolabels",
    "transfer",
    "nested",
    "blend",
)
# Those whose out-of-fold predictions must know nothing once labels are shuffled: one of each way to
# learn, since it takes a dozen fits. Add one that learns in a new way.
LEARNERS = ("pls", "kernel_ridge", "random_forest", "xgboost", "network", "neighbours", "transfer")
# Those that look at no label, so that an unheard one is nothing to name.
KNOWS_NO_LABELS = ("gene_mean", "random_draw")


def quick(name: str, **more: Any) -> Baseline[Any]:
    return make(name, **{**QUICK[name], **more})
