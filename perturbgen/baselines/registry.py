"""The baselines by name: what they are, what they need, how one is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from perturbgen.baselines.base import Baseline
from perturbgen.core.config import Settings, load_settings
from perturbgen.core.errors import ConfigError, suggest

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from perturbgen.baselines.selection import Maker


@dataclass(frozen=True)
class Entry:
    """One baseline: where its class is (imported when used), what it is in one line, what must or may be given to it.

    ``open_problems`` is the name of the same thing in the Open Problems benchmark.
    """

    where: str
    description: str
    open_problems: str = ""
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    random: bool = False
    intervals: bool = False
    transductive: bool = False

    @property
    def kind(self) -> type[Baseline[Any]]:
        """The class."""
        module, _, name = self.where.partition(":")
        return getattr(import_module(f"perturbgen.baselines.{module}"), name)

    @property
    def settings_class(self) -> type[Settings]:
        """The class of its settings."""
        return self.kind.settings_class


_SMILES: Final = ("smiles",)
REGISTRY: Final[Mapping[str, Entry]] = {
    "zeros": Entry("constants:Zeros", "no effect anywhere", "zeros", intervals=True),
    "gene_mean": Entry(
        "constants:GeneMean", "mean of each gene over all rows", "mean_outcome", intervals=True
    ),
    "compound_mean": Entry(
        "constants:CompoundMean",
        "mean of the compound over cell types",
        "mean_across_compounds",
        intervals=True,
    ),
    "compound_median": Entry("constants:CompoundMedian", "median of the compound over cell types"),
    "cell_type_mean": Entry(
        "constants:CellTypeMean",
        "mean of the cell type over compounds",
        "mean_across_celltypes",
        intervals=True,
    ),
    "additive": Entry("lowrank:Additive", "cell type + compound, by least squares", intervals=True),
    "shrunken_additive": Entry(
        "lowrank:ShrunkenAdditive",
        "cell type + compound, shrunk by variance components",
        intervals=True,
    ),
    "random_draw": Entry(
        "constants:RandomDraw", "each gene drawn from its training values", "sample", random=True
    ),
    "nearest_replicate": Entry(
        "constants:NearestReplicate", "the compound's row in the most similar cell type"
    ),
    "ground_truth": Entry(
        "constants:GroundTruth", "the measured rows: the ceiling", "ground_truth", needs=("truth",)
    ),
    "bilinear_ridge": Entry(
        "linear:BilinearRidge", "ridge between PCA embeddings (Ahlmann-Eltze et al.)"
    ),
    "pls": Entry(
        "linear:PartialLeastSquares",
        "partial least squares on encodings",
        uses=_SMILES,
        random=True,
    ),
    "kernel_ridge": Entry(
        "linear:KernelRidge",
        "Gaussian kernel ridge on encodings",
        uses=_SMILES,
        random=True,
        intervals=True,
    ),
    "neighbours": Entry("neighbours:Neighbours", "kNN recommender over compounds"),
    "random_forest": Entry(
        "trees:RandomForest",
        "random forest on DE values",
        uses=_SMILES,
        random=True,
        intervals=True,
    ),
    "pseudobulk_forest": Entry(
        "trees:PseudobulkForest",
        "random forest on pseudobulk counts, then limma",
        needs=("pseudobulk",),
        random=True,
    ),
    "xgboost": Entry(
        "trees:XGBoost", "boosted trees on components of t values", uses=_SMILES, random=True
    ),
    "xgboost_plain": Entry("trees:PlainXGBoost", "XGBoost out of the box, a model a gene"),
    "network": Entry(
        "network:LowRankNetwork", "low-rank network, median of seeds", uses=_SMILES, random=True
    ),
    "network_pseudolabels": Entry(
        "network:PseudoLabelNetwork",
        "low-rank network, two stages with pseudo-labels",
        uses=_SMILES,
        random=True,
        transductive=True,
    ),
    "transfer": Entry(
        "transfer:TransferStack", "profiles elsewhere + offset + kriged known compounds, stacked"
    ),
    "nested": Entry(
        "blend:Nested", "one baseline, its settings chosen out of fold", uses=_SMILES, random=True
    ),
    "blend": Entry(
        "blend:Blend",
        "weighted sum, weights from out-of-fold predictions",
        uses=_SMILES,
        random=True,
    ),
}


def available() -> dict[str, str]:
    """Name and one-line description of every baseline."""
    return {name: entry.description for name, entry in REGISTRY.items()}


def find(name: str) -> Entry:
    """The baseline of a name, ours or Open Problems'."""
    if name in REGISTRY:
        return REGISTRY[name]
    for entry in REGISTRY.values():
        if name == entry.open_problems:
            return entry
    fix = "perturbgen baselines lists them"
    raise ConfigError(f"there is no baseline {name!r}: {suggest(name, REGISTRY)}", fix=fix)


def make(
    name: str,
    *,
    truth: pd.DataFrame | None = None,
    pseudobulk: AnnData | None = None,
    smiles: pd.Series | None = None,
    **settings: Any,
) -> Baseline[Any]:
    """A baseline that is not fitted yet, with some of its settings.

    >>> make("kernel_ridge", ridge=1.0).fit(de_train, rng=np.random.default_rng(0)).predict(conditions)

    ``truth`` and ``pseudobulk`` are for the baselines that need them; ``smiles`` (indexed by compound) for those that
    can use fingerprints.
    """
    entry = find(name)
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
    fix = f"perturbgen baselines {name} lists its settings"
    chosen = load_settings(entry.settings_class, base=settings, fix=fix)
    parts = {key: given[key] for key in (*entry.needs, *entry.uses) if given[key] is not None}
    return _COMPOSED.get(entry.where, _plain)(entry, chosen, parts)


_NEEDS: Final = {
    "truth": "the measured rows as a DE table",
    "pseudobulk": "an AnnData of raw counts, samples x genes, as perturbgen pseudobulk writes it",
}


def _plain(entry: Entry, settings: Settings, parts: dict[str, Any]) -> Baseline[Any]:
    """A baseline that stands alone."""
    return entry.kind(settings, **parts)


def _make_blend(entry: Entry, settings: Any, parts: dict[str, Any]) -> Baseline[Any]:
    """A blend and its members."""
    alien = [name for name in settings.settings if name not in settings.members]
    if alien:
        raise ConfigError(
            f"settings for {alien[0]!r}, which is no member",
            fix=suggest(alien[0], settings.members),
        )
    members = {
        name: maker(name, settings.settings.get(name, {}), parts) for name in settings.members
    }
    return entry.kind(settings, members=members)  # type: ignore[call-arg]


def _make_nested(entry: Entry, settings: Any, parts: dict[str, Any]) -> Baseline[Any]:
    """A choice and its candidates."""
    from perturbgen.baselines.blend import crossed

    candidates = {
        ", ".join(f"{k}={v}" for k, v in values.items()) or "defaults": maker(
            settings.base, values, parts
        )
        for values in crossed(settings.grid)
    }
    return entry.kind(settings, candidates=candidates)  # type: ignore[call-arg]


def maker(name: str, settings: Mapping[str, Any], parts: Mapping[str, Any]) -> Maker:
    """A function that makes a member; the settings are checked now, not when it is called."""
    shared = {key: value for key, value in parts.items() if key in find(name).uses}
    make(name, **shared, **settings)
    return lambda: make(name, **shared, **settings)


_COMPOSED: Final[Mapping[str, Callable[[Entry, Any, dict[str, Any]], Baseline[Any]]]] = {
    "blend:Blend": _make_blend,
    "blend:Nested": _make_nested,
}
