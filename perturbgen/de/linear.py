"""A linear model of every gene, asked one question after the other, as limma's users ask.

>>> import perturbgen as pg
>>> fit = pg.de.fit(counts, obs, design="~0 + treatment + donor", gene_filter="filterByExpr")
>>> tested = fit.contrasts({"a": "drugA - DMSO", "ab": "drugA - drugB"}).ebayes(robust=True)
>>> tested.top_table("a", number=20)
>>> tested.decide("nestedF")
>>> fit.contrasts("drugA - DMSO").treat(lfc=0.5).top_table()

``docs/limma.md`` puts each call beside R's. Standard errors of contrasts are exact unless
``contrasts="limma"`` asks for the approximation of ``contrasts.fit`` (see ``native.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perturbgen.core.errors import ConfigError, DesignError, SchemaError, shorten, suggest
from perturbgen.core.system import ONE_BLAS_THREAD
from perturbgen.de.blocks import Block
from perturbgen.de.contrast import contrast_samples, contrast_weights
from perturbgen.de.counts import Inputs
from perturbgen.de.design import Design
from perturbgen.de.moderate import moderate
from perturbgen.de.moderated import Moderated
from perturbgen.de.native import FitMethod, fit_genes, gene_correlations, library_sizes
from perturbgen.de.normalise import as_sizes, log_cpm
from perturbgen.de.plan import gene_mask, with_control
from perturbgen.de.voom import LogCounts
from perturbgen.de.weighting import Weighting, value_logs, voom_logs

if TYPE_CHECKING:
    from anndata import AnnData

_Array = NDArray[np.float64]
_LEAST_FOLD = float(np.log2(1.2))  # limma's treat


@dataclass(frozen=True)
class LinearFit:
    """Linear models of the log counts of all genes, under one design.

    It answers for its coefficients, or for the contrasts that :meth:`contrasts` asks for:
    ``weights`` (contrasts, columns of the design), called ``names``.
    """

    design: Design
    logs: LogCounts
    genes: pd.Index
    method: FitMethod
    names: tuple[str, ...]
    weights: _Array
    obs: pd.DataFrame
    group: str | None = None
    formulas: tuple[str, ...] = ()

    def __repr__(self) -> str:
        samples, genes = self.logs.e.shape
        return (
            f"LinearFit of {genes:,} genes x {samples:,} samples, {self.design.rank} coefficients: "
            f"{shorten(self.names, 8)}"
        )

    def contrasts(self, wanted: str | Sequence[str] | Mapping[str, str]) -> LinearFit:
        """The same fit, asked about contrasts: formulas, or formulas by name.

        A formula has levels of factors, coefficients (R's names), numbers, brackets and + - * /:
        ``"drugA - drugB"``, ``"(A.stim - A.ctrl) - (B.stim - B.ctrl)"``, ``"dose"``.
        """
        if isinstance(wanted, str):
            wanted = [wanted]
        named = dict(wanted) if isinstance(wanted, Mapping) else {text: text for text in wanted}
        if not named:
            raise ConfigError("no contrast is asked for", fix='contrasts({"name": "A - B"})')
        weights = contrast_weights(self.design, named, prefer=self.group)
        lost = self.design.dropped[weights[:, self.design.dropped].any(axis=0)]
        if self.method.contrasts == "limma" and len(lost):
            raise DesignError(
                "limma's contrasts do not take coefficients that others determine: "
                f"{shorten(self.design.columns[j] for j in lost)}",
                fix='contrasts="exact", or a design without them',
            )
        formulas = tuple(named.values())
        return replace(self, names=tuple(named), weights=weights, formulas=formulas)

    def conditions(self) -> pd.DataFrame:
        """What each contrast compares: samples on either side, and the cells of the smaller one.

        Where obs counts cells; one side alone where a coefficient is compared with zero.
        """
        rows = []
        for formula in self.formulas or [f"`{name}`" for name in self.names]:
            sides = contrast_samples(self.design, formula, prefer=self.group)
            row = dict(zip(("n_samples", "n_control"), (int(s.sum()) for s in sides), strict=True))
            if "n_cells" in self.obs:
                cells = self.obs["n_cells"].to_numpy()
                row["n_cells"] = int(min(cells[side].sum() for side in sides if side.any()))
            rows.append({**row, "estimable": True})
        return pd.DataFrame(rows, list(self.names))

    @cached_property
    def _fitted(self) -> tuple[_Array, _Array, _Array]:
        """Residual SD (genes,), effects and unscaled standard errors (contrasts, genes)."""
        return fit_genes(self.logs, self.design, self.weights, self.method)

    @cached_property
    def correlations(self) -> _Array:
        """Correlations of the contrasts' errors (1 or genes, contrasts, contrasts).

        limma takes those of the unweighted design for all genes.
        """
        if self.method.contrasts == "exact" or self.logs.equal:
            return gene_correlations(self.logs, self.design, self.weights, self.method)
        covariance = self.logs.solver.unscaled_covariance(self.weights)
        scale = np.sqrt(np.diag(covariance))
        found: _Array = (covariance / np.outer(scale, scale))[None]
        return found

    @property
    def correlation(self) -> float | None:
        """Of samples of one block; None without blocks."""
        return getattr(self.logs.solver, "correlation", None)

    @property
    def sample_weights(self) -> pd.Series | None:
        """What each sample weighs by its quality, where that was asked for."""
        own = self.logs.sample_weights
        return None if own is None else pd.Series(own, self.design.samples, name="sample_weight")

    @property
    def coefficients(self) -> pd.DataFrame:
        """Log2 fold changes, genes x contrasts."""
        return pd.DataFrame(self._fitted[1].T, self.genes, list(self.names))

    @property
    def sigma(self) -> pd.Series:
        """Residual standard deviations (genes,)."""
        return pd.Series(self._fitted[0], self.genes, name="sigma")

    @property
    def ave_expr(self) -> pd.Series:
        """Average log2 counts per million (genes,)."""
        return pd.Series(self.logs.e.mean(axis=0), self.genes, name="AveExpr")

    @ONE_BLAS_THREAD
    def ebayes(
        self, *, trend: bool = False, robust: bool = False, proportion: float = 0.01
    ) -> Moderated:
        """Moderated t, F and B statistics, as limma's ``eBayes``.

        ``proportion`` of the genes are supposed to respond; B depends on it, and nothing else.
        """
        if not 0 < proportion < 1:
            what = f"proportion={proportion!r} is not possible"
            raise ConfigError(what, expected="a number between 0 and 1")
        return self._moderated(trend, robust, proportion=proportion)

    @ONE_BLAS_THREAD
    def treat(
        self, lfc: float = _LEAST_FOLD, *, trend: bool = False, robust: bool = False
    ) -> Moderated:
        """Tests of whether log2 fold changes exceed ``lfc``, as limma's ``treat``."""
        if not (np.isfinite(lfc) and lfc >= 0):
            what = f"lfc={lfc!r} is no log2 fold change to exceed"
            raise ConfigError(what, expected="a number from 0 on")
        return self._moderated(trend, robust, lfc=float(lfc))

    def _moderated(
        self, trend: bool, robust: bool, *, proportion: float = 0.01, lfc: float | None = None
    ) -> Moderated:
        sigma, effects, unscaled = self._fitted
        mean, df = self.logs.e.mean(axis=0), self.design.df_residual
        moderation = moderate(sigma**2, df, mean=mean, robust=robust, trend=trend)
        return Moderated.of(
            self,
            effects,
            unscaled,
            moderation,
            info={"trend": trend, "robust": robust},
            proportion=proportion,
            lfc=lfc,
        )


def fit(
    counts: AnnData | pd.DataFrame,
    obs: pd.DataFrame | None = None,
    *,
    design: str | pd.DataFrame,
    group: str | None = None,
    control: str | None = None,
    contrasts: Literal["exact", "limma"] = "exact",
    normalise: Literal["tmm", "tmmwsp", "rle", "upperquartile", "none"] = "tmm",
    span: float | Literal["adaptive"] = 0.5,
    gene_filter: Literal["filterByExpr"] | Sequence[str] | None = None,
    transform: Literal["voom", "logcpm", "none"] = "voom",
    block: Block | str | None = None,
    correlation: float | None = None,
    quality: bool = False,
    weights: pd.DataFrame | pd.Series | None = None,
    sizes: pd.Series | str | None = None,
    allow_fractional: bool = False,
    layer: str | None = None,
    device: str = "cpu",
) -> LinearFit:
    """limma-voom's linear models of raw counts (samples x genes), ready for any contrast.

    Parameters
    ----------
    counts, obs
        raw counts, samples x genes; an AnnData brings its own obs, a DataFrame needs ``obs``
    design
        an R formula of columns of obs, or a matrix (samples x coefficients)
    group, control
        the column that ``{group}`` in the formula stands for, and its level that others are coded
        as differences from
    contrasts
        ``"exact"`` standard errors, or ``"limma"`` for the approximation of ``contrasts.fit``
    transform
        ``"voom"`` weighs each count by the trend of the variances; ``"logcpm"`` takes log counts
        per million (prior count 3) of equal weights, for ``ebayes(trend=True)``: limma-trend, as
        good where library sizes differ less than threefold. ``"none"`` where the values are log
        expressions already
    block, correlation
        what correlated samples share (their donor), as a column of obs or labels, and their
        correlation, by default estimated as ``duplicateCorrelation`` does, twice with voom
    quality
        whether samples are weighted by their quality (``voomWithQualityWeights``)
    weights
        of samples, or of observations (samples x genes): beside voom's
    sizes
        library sizes, as a column of obs or numbers; by default the sums of the counts
    normalise, span, gene_filter, allow_fractional, layer, device
        as in :func:`limma_table`

    """
    method = FitMethod(contrasts, normalise=normalise, span=span, device=device)
    method.require_known()
    plain = transform == "voom" and block is None and weights is None and not quality
    _require_transform(transform, method, plain=plain)
    logs = transform == "none"
    if logs and gene_filter == "filterByExpr":
        what = "filterByExpr is a filter of counts, and transform='none' is for log expressions"
        raise ConfigError(what, fix="gene_filter=None, or names of genes")
    data = Inputs.of(counts, obs, layer=layer, allow_fractional=allow_fractional, logs=logs)
    made = _make_design(design, data.obs, group, control)
    made.require_df()
    values, genes = data.values, data.genes
    mask = gene_mask(data, made, gene_filter)
    if mask is not None:
        values, genes = np.ascontiguousarray(values[:, mask]), genes[mask]
    weighting = Weighting.of(
        data.obs.index,
        genes,
        weights=weights,
        block=_from_obs(data.obs, block, "block"),
        correlation=correlation,
        quality=quality,
    )
    own = _from_obs(data.obs, sizes, "sizes")
    library = None if own is None else as_sizes(own, data.obs.index)
    made_logs = _transform(values, made, method, weighting, transform, library)
    kept = made.kept
    asked = np.zeros((len(kept), len(made.columns)))
    asked[np.arange(len(kept)), kept] = 1
    names = tuple(made.columns[j] for j in kept)
    return LinearFit(made, made_logs, genes, method, names, asked, data.obs, group)


def _require_transform(transform: str, method: FitMethod, *, plain: bool) -> None:
    if transform not in ("voom", "logcpm", "none"):
        what = f"transform={transform!r} is unknown"
        raise ConfigError(what, expected="'voom', 'logcpm' or 'none'")
    if method.device != "cpu" and not plain:
        what = f"blocks, weights and log values are not fitted on {method.device}"
        raise ConfigError(what, fix='device="cpu"')


def _from_obs(obs: pd.DataFrame, given: Any, role: str) -> Any:
    """A column of obs by its name; what is no name is taken as it is."""
    if not isinstance(given, str):
        return given
    if given not in obs:
        what = f"{role}={given!r} is no column of obs"
        raise SchemaError(what, fix=suggest(given, map(str, obs.columns)))
    return obs[given]


def _transform(
    values: _Array,
    design: Design,
    method: FitMethod,
    weighting: Weighting,
    transform: str,
    sizes: _Array | None,
) -> LogCounts:
    """Log expressions (samples, genes) and what each weighs."""
    if transform == "none":
        if design.offset is not None:
            values = values - design.offset[:, None]
        return value_logs(values, design, weighting)
    library = library_sizes(values, design, method, sizes)
    if transform == "voom":
        return voom_logs(values, library, design, weighting, span=method.span)
    y = log_cpm(values, sizes=library, prior_count=3).to_numpy()
    return value_logs(y, design, weighting)


def _make_design(
    design: str | pd.DataFrame, obs: pd.DataFrame, group: str | None, control: str | None
) -> Design:
    if not isinstance(design, str):
        frame = pd.DataFrame(design)
        if len(frame) != len(obs):
            what = f"the design has {len(frame)} rows for {len(obs)} samples"
            raise DesignError(what, expected="a row for each sample of the counts")
        if set(frame.index) == set(obs.index):  # joined by label where there are labels
            frame = frame.loc[obs.index]
        elif not isinstance(frame.index, pd.RangeIndex):
            raise SchemaError("the design's rows are called otherwise than the counts' samples")
        return Design.from_matrix(frame)
    if group is None:
        if "{group}" in design or control is not None:
            what = "{group} and control= need the column that they are of"
            raise ConfigError(what, fix='group="compound"')
        return Design.from_formula(design, obs)
    coded = with_control(obs, group, control)
    return Design.from_formula(design.replace("{group}", f"`{group}`"), coded)
