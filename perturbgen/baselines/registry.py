"""The baselines by name: what they are, what they need, how one is made.

A new baseline is a subclass of :class:`~perturbgen.baselines.base.Baseline` (or of a kinder base:
``LinearSmoother``, ``FeatureModel``) and a line in ``REGISTRY``, where commands and comparisons
find it. ``tests/baselines/test_contract.py`` holds it to what all baselines promise, once
``tests/baselines/cases.py`` says which settings are quick (``QUICK``), whether it must beat the
mean of the cell type (``MODELS``), must learn nothing from shuffled labels (``LEARNERS``), or knows
no labels at all (``KNOWS_NO_LABELS``). Those of other packages come in by themselves
(:mod:`perturbgen.core.extensions`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import product
from typing import TYPE_CHECKING, Any, Final

from perturbgen.baselines.base import Baseline
from perturbgen.baselines.foreign import Foreign, asked_for, baseline_settings, has_intervals
from perturbgen.core.config import Settings
from perturbgen.core.errors import ConfigError, suggest
from perturbgen.core.extensions import Catalogue, Extension

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


@dataclass(frozen=True)
class _Entry:
    """One baseline: where its class is, what it is in one line, what must or may be given to it.

    * ``where``: "module:_Class", imported when it is used, since only some need torch, XGBoost or
      scikit-learn;
    * ``open_problems``: the name of the same thing in the Open Problems benchmark;
    * ``needs`` and ``uses``: what ``make`` must, or may, be given beside the table ("truth",
      "pseudobulk", "smiles"), and passes on to the class as keywords;
    * ``random``: draws from the ``rng`` of its fit, so that a comparison runs it once a seed;
    * ``intervals``: ``predict_interval`` works (``_half_width`` gives a width, not None);
    * ``transductive``: a prediction also depends on which other conditions are asked for;
    * ``extension``: where it comes from, if it is none of ours.
    """

    where: str
    description: str
    open_problems: str = ""
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    random: bool = False
    intervals: bool = False
    transductive: bool = False
    extension: Extension | None = None

    @property
    def kind(self) -> type[Baseline[Any]]:
        """The class; of an extension whatever makes a predictor."""
        if self.extension is not None:
            return self.extension.load()
        module, _, name = self.where.partition(":")
        return getattr(import_module(f"perturbgen.baselines.{module}"), name)

    @property
    def is_bar(self) -> bool:
        """Whether others have to beat it: one of ours that has not seen the answer."""
        return self.extension is None and "truth" not in self.needs

    @property
    def settings_class(self) -> type[Settings]:
        """The class of its settings."""
        if self.extension is not None:
            return baseline_settings(self.kind, self.extension)
        return self.kind.settings_class

    @classmethod
    def adopt(cls, extension: Extension) -> _Entry:
        """A baseline of somebody else, which says of itself what ours have in their line below."""
        kind = extension.load()
        baseline_settings(kind, extension)  # what is no predictor at all is told now
        return cls(
            extension.where,
            (inspect.getdoc(kind) or "").partition("\n")[0].rstrip("."),
            needs=asked_for(kind, "needs"),
            uses=asked_for(kind, "uses"),
            random=bool(getattr(kind, "random", True)),
            intervals=has_intervals(kind),
            transductive=bool(getattr(kind, "transductive", False)),
            extension=extension,
        )


def _mean(where: str, description: str, open_problems: str = "") -> _Entry:
    """A deterministic baseline with prediction intervals."""
    return _Entry(where, description, open_problems, intervals=True)


def _learner(where: str, description: str, **marks: Any) -> _Entry:
    """A random baseline that can use fingerprints."""
    return _Entry(where, description, uses=("smiles",), random=True, **marks)


# In the order that lists and reports show: constants, linear models, learners, combinations.
_BUILT_IN: Final[Mapping[str, _Entry]] = {
    "zeros": _mean("rows:_Zeros", "no effect anywhere", "zeros"),
    "gene_mean": _mean("rows:_GeneMean", "mean of each gene over all rows", "mean_outcome"),
    "compound_mean": _mean(
        "rows:_CompoundMean", "mean of the compound over cell types", "mean_across_compounds"
    ),
    "compound_median": _Entry("rows:_CompoundMedian", "median of the compound over cell types"),
    "cell_type_mean": _mean(
        "rows:_CellTypeMean", "mean of the cell type over compounds", "mean_across_celltypes"
    ),
    "additive": _mean("linear:_Additive", "cell type + compound, by least squares"),
    "shrunken_additive": _mean(
        "linear:_ShrunkenAdditive", "cell type + compound, shrunk by variance components"
    ),
    "random_draw": _Entry(
        "rows:_RandomDraw", "each gene drawn from its training values", "sample", random=True
    ),
    "nearest_replicate": _Entry(
        "rows:_NearestReplicate", "the compound's row in the most similar cell type"
    ),
    "ground_truth": _Entry(
        "rows:_GroundTruth", "the measured rows: the ceiling", "ground_truth", needs=("truth",)
    ),
    "bilinear_ridge": _Entry(
        "linear:_BilinearRidge", "ridge between PCA embeddings (Ahlmann-Eltze et al.)"
    ),
    "pls": _learner("linear:_PartialLeastSquares", "partial least squares on encodings"),
    "kernel_ridge": _learner(
        "linear:_KernelRidge", "Gaussian kernel ridge on encodings", intervals=True
    ),
    "neighbours": _Entry("rows:_Neighbours", "kNN recommender over compounds"),
    "random_forest": _learner("trees:_RandomForest", "random forest on DE values", intervals=True),
    "pseudobulk_forest": _Entry(
        "pseudobulk_forest:_PseudobulkForest",
        "random forest on pseudobulk counts, then limma",
        needs=("pseudobulk",),
        random=True,
    ),
    "xgboost": _learner("trees:_XGBoost", "boosted trees on components of t values"),
    "xgboost_plain": _Entry("trees:_PlainXGBoost", "XGBoost out of the box, a model a gene"),
    "network": _learner("network:_LowRankNetwork", "low-rank network, median of seeds"),
    "network_pseudolabels": _learner(
        "network:_PseudoLabelNetwork",
        "low-rank network, two stages with pseudo-labels",
        transductive=True,
    ),
    "transfer": _Entry(
        "transfer:_TransferStack", "profiles elsewhere + offset + kriged known compounds, stacked"
    ),
    "nested": _learner("selection:_Nested", "one baseline, its settings chosen out of fold"),
    "blend": _learner("selection:_Blend", "weighted sum, weights from out-of-fold predictions"),
}


REGISTRY: Final = Catalogue("baseline", _BUILT_IN, _Entry.adopt)


def find_baseline(name: str) -> _Entry:
    """The baseline of a name, ours or Open Problems', or of an extension."""
    for ours, entry in _BUILT_IN.items():
        if name in (ours, entry.open_problems):
            return entry
    return REGISTRY[name]


def make(
    name: str,
    *,
    truth: pd.DataFrame | None = None,
    pseudobulk: AnnData | None = None,
    smiles: pd.Series | None = None,
    **settings: Any,
) -> Baseline[Any]:
    """A baseline that is not fitted yet, with some of its settings.

    >>> model = make("kernel_ridge", ridge=1.0).fit(de_train, rng=np.random.default_rng(0))
    >>> model.predict(conditions)

    ``truth`` and ``pseudobulk`` are for the baselines that need them; ``smiles`` (indexed by
    compound) for those that can use fingerprints.
    """
    entry = find_baseline(name)
    given = {"truth": truth, "pseudobulk": pseudobulk, "smiles": smiles}
    for key in entry.needs:
        if given[key] is None:
            raise ConfigError(
                f"{name} needs {key}",
                expected=_NEEDS[key],
                fix=f"make({name!r}, {key}=...), or --{key}",
            )
    for key, value in given.items():
        if value is not None and key not in (*entry.needs, *entry.uses):
            raise ConfigError(f"{name} makes no use of {key}", fix="leave it out")
    fix = f"perturbgen baseline {name} lists its settings"
    chosen: Any = entry.settings_class.load(base=settings, fix=fix)
    parts: dict[str, Any] = {
        key: given[key] for key in (*entry.needs, *entry.uses) if given[key] is not None
    }
    if entry.extension is not None:
        return Foreign(entry.extension, entry.kind, chosen, parts)
    if name == "blend":
        candidates = _blend_members(chosen.members, chosen.settings, parts)
    elif name == "nested":
        candidates = crossed(chosen.base, chosen.grid, **parts)
    else:
        return entry.kind(chosen, **parts)
    composed: Any = entry.kind  # made of others, to which what was given belongs
    return composed(chosen, candidates=candidates)


_NEEDS: Final = {
    "truth": "the measured rows as a DE table",
    "pseudobulk": "an AnnData of raw counts, samples x genes, as perturbgen pseudobulk writes it",
}


def _blend_members(
    names: tuple[str, ...], settings: Mapping[str, Mapping[str, Any]], parts: Mapping[str, Any]
) -> dict[str, partial[Baseline[Any]]]:
    """The members of a blend."""
    alien = [name for name in settings if name not in names]
    if alien:
        raise ConfigError(
            f"settings for {alien[0]!r}, which is no member", fix=suggest(alien[0], names)
        )
    return {name: _maker(name, settings.get(name, {}), **parts) for name in names}


def crossed(
    name: str,
    grid: Mapping[str, list[Any]],
    settings: Mapping[str, Any] | None = None,
    **parts: Any,
) -> dict[str, partial[Baseline[Any]]]:
    """A baseline with every combination of a grid's values, named by what differs.

    ``settings`` are those that all candidates share.
    """
    combinations = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    return {
        ", ".join(f"{k}={v}" for k, v in values.items()) or "defaults": _maker(
            name, {**(settings or {}), **values}, **parts
        )
        for values in combinations
    }


def _maker(name: str, settings: Mapping[str, Any], **parts: Any) -> partial[Baseline[Any]]:
    """A function that makes a baseline, whose settings are checked now, not when it is called."""
    shared = {key: value for key, value in parts.items() if key in find_baseline(name).uses}
    made = partial(make, name, **shared, **settings)
    # Made once and thrown away: a wrong setting is told now, not in the middle of a fit.
    made()
    return made
