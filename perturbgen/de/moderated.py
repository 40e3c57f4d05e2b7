"""Moderated statistics of contrasts: tables of genes, F tests, and which genes respond to what.

As limma's ``eBayes``, ``treat``, ``topTable`` and ``decideTests`` have them; columns of tables are
called as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

from perturbgen.core.errors import ConfigError, SchemaError, shorten, suggest
from perturbgen.de.adjust import adjust_p, share_of_level
from perturbgen.de.native import test_effects
from perturbgen.de.nested import classify, inverse_correlations, quadratic
from perturbgen.de.odds import log_odds
from perturbgen.de.table import DETable
from perturbgen.de.tails import log_p_beyond, log_p_f, log_p_t

if TYPE_CHECKING:
    from perturbgen.de.design import Design
    from perturbgen.de.moderate import Moderation
    from perturbgen.de.voom import LogCounts

_Array = NDArray[np.float64]
_LOG_10 = np.log(10.0)
_INTERCEPT = "(Intercept)"


class _Asked(Protocol):
    """What is needed of a fit: its contrasts, and what they share."""

    @property
    def design(self) -> Design: ...
    @property
    def logs(self) -> LogCounts: ...
    @property
    def genes(self) -> pd.Index: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def ave_expr(self) -> pd.Series: ...
    @property
    def correlations(self) -> _Array: ...
    def conditions(self) -> pd.DataFrame: ...


@dataclass(frozen=True)
class Moderated:
    """Moderated statistics of a fit's contrasts, frames of genes x contrasts.

    ``logfc``, ``t``, ``se``, ``log10_p`` and, unless a fold change is to be exceeded, the log odds
    ``b`` that a gene responds; ``df`` (genes,) are the total degrees of freedom. ``lfc`` is the
    fold change that ``treat`` was given.
    """

    fit: _Asked = field(repr=False)
    logfc: pd.DataFrame
    t: pd.DataFrame
    se: pd.DataFrame
    log10_p: pd.DataFrame
    df: pd.Series
    moderation: Moderation = field(repr=False)
    b: pd.DataFrame | None = None
    lfc: float | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        fit: _Asked,
        effects: _Array,
        unscaled: _Array,
        moderation: Moderation,
        *,
        proportion: float,
        lfc: float | None,
        info: Mapping[str, Any],
    ) -> Moderated:
        """Of effects and unscaled standard errors (contrasts, genes)."""
        df, sd = moderation.df_total, np.sqrt(moderation.s2_post)
        se, t, log_p = test_effects(effects, unscaled, sd, df)
        b = None
        if lfc is None:
            b = log_odds(t, unscaled, moderation, proportion)
        else:
            t, log_p = log_p_beyond(effects, se, df, lfc)

        def frame(values: _Array) -> pd.DataFrame:
            return pd.DataFrame(values.T, fit.genes, list(fit.names))

        return cls(
            fit,
            frame(effects),
            frame(t),
            frame(se),
            frame(log_p / _LOG_10),
            pd.Series(df, fit.genes, name="df"),
            moderation,
            None if b is None else frame(b),
            lfc,
            info,
        )

    def __repr__(self) -> str:
        asked = "" if self.lfc is None else f" beyond a log2 fold change of {self.lfc:.3g}"
        lines = [f"Moderated: {self.t.shape[0]:,} genes x {self.t.shape[1]:,} contrasts{asked}"]
        chosen = self.decide()
        for name in chosen.columns[:8]:
            up, down = int((chosen[name] > 0).sum()), int((chosen[name] < 0).sum())
            lines.append(f"  {str(name)[:70]}: {up:,} up, {down:,} down at adjusted p .05")
        return "\n".join(lines)

    @property
    def names(self) -> tuple[str, ...]:
        """The contrasts."""
        return self.fit.names

    @property
    def p(self) -> pd.DataFrame:
        """p values, genes x contrasts; 0 where they underflow (``log10_p`` does not)."""
        return 10.0**self.log10_p

    def top_table(
        self,
        contrast: str | Sequence[str] | None = None,
        *,
        number: int | None = 10,
        sort: Literal["B", "P", "logFC", "AveExpr", "t", "none"] | None = None,
        adjust: str = "BH",
        max_p: float = 1.0,
        lfc: float = 0.0,
        confint: bool | float = False,
    ) -> pd.DataFrame:
        """The strongest genes of a contrast, as ``topTable``; of several or all by their F test.

        ``number`` None: all genes. Only genes of an adjusted p of at most ``max_p`` and a log fold
        change of at least ``lfc``. ``confint`` adds limits, of 95 % or the share given. After
        ``treat`` the order is that of p.
        """
        names = self._chosen(contrast)
        if len(names) > 1:
            table = self._f_table(names, adjust)
            largest = table[names].abs().max(axis=1)
            keep = (table["adj.P.Val"] <= max_p) & ((largest > lfc) if lfc > 0 else True)
            order = np.argsort(table["P.Value"].to_numpy(), kind="stable")
            if sort == "none":
                order = np.arange(len(table))
        else:
            [name] = names
            table = self._t_table(name, adjust, confint)
            keep = (table["adj.P.Val"] <= max_p) & (table["logFC"].abs() >= lfc)
            order = self._order(name, table, sort or ("B" if self.b is not None else "P"))
        table = table.iloc[order]
        return table[keep.iloc[order]].head(len(table) if number is None else number)

    def _chosen(self, contrast: str | Sequence[str] | None) -> list[str]:
        if contrast is None:
            found = [n for n in self.names if n != _INTERCEPT] or list(self.names)
        else:
            found = [contrast] if isinstance(contrast, str) else list(dict.fromkeys(contrast))
        for name in found:
            if name not in self.names:
                what = f"the fit was not asked about {name!r}"
                raise SchemaError(what, fix=suggest(name, self.names))
        if not found:
            raise ConfigError("no contrast is named", expected=f"some of {shorten(self.names)}")
        if len(found) > 1 and self.lfc is not None:
            raise ConfigError(
                "a minimal fold change is tested for one contrast at a time",
                fix=f"name one of {shorten(self.names)}",
            )
        return found

    def _t_table(self, name: str, adjust: str, confint: bool | float) -> pd.DataFrame:
        effect, p = self.logfc[name], self.p[name].to_numpy()
        table = pd.DataFrame({"logFC": effect})
        if confint:
            share = 0.95 if confint is True else float(confint)
            if not 0 < share < 1:
                what = f"confint={confint!r} is not possible"
                raise ConfigError(what, expected="True, or a share between 0 and 1")
            margin = self.se[name] * student.ppf((1 + share) / 2, self.df)
            normal = np.isinf(self.df)
            margin[normal] = self.se[name][normal] * norm.ppf((1 + share) / 2)
            table["CI.L"], table["CI.R"] = effect - margin, effect + margin
        table["AveExpr"] = self.fit.ave_expr
        table["t"], table["P.Value"] = self.t[name], p
        table["adj.P.Val"] = adjust_p(p, adjust)
        if self.b is not None:
            table["B"] = self.b[name]
        return table

    def _f_table(self, names: list[str], adjust: str) -> pd.DataFrame:
        tested = self.f_test(names)
        table = self.logfc[names].assign(AveExpr=self.fit.ave_expr)
        table["F"], table["P.Value"] = tested["F"], tested["P.Value"]
        table["adj.P.Val"] = adjust_p(tested["P.Value"].to_numpy(), adjust)
        return table

    def _order(self, name: str, table: pd.DataFrame, sort: str) -> NDArray[np.intp]:
        known = ("B", "P", "logFC", "AveExpr", "t", "none")
        if sort not in known or (sort == "B" and self.b is None):
            raise ConfigError(
                f"sort={sort!r} is not possible",
                expected=", ".join(known) + ("" if self.b is not None else "; no B after treat"),
            )
        if sort == "none":
            return np.arange(len(table))
        if sort == "P":  # of p values that underflow the log still tells which is smaller
            return np.argsort(self.log10_p[name].to_numpy(), kind="stable")
        values = table[sort].to_numpy()
        return np.argsort(-(np.abs(values) if sort in ("logFC", "t") else values), kind="stable")

    def f_test(self, contrasts: Sequence[str] | None = None) -> pd.DataFrame:
        """Moderated F of several contrasts at once: does any of them respond? Columns as in limma.

        ``df1`` is the number of independent contrasts, ``log10_p`` does not underflow.
        """
        names = self._chosen(contrasts)
        precision, rank = self._precision(names)
        f = quadratic(self.t[names].to_numpy(), precision)
        df2 = self._df_of_f()
        log_p = log_p_f(f, rank, df2)
        columns = {"F": f, "df1": rank, "df2": df2, "P.Value": np.exp(log_p)}
        return pd.DataFrame({**columns, "log10_p": log_p / _LOG_10}, self.t.index)

    def _df_of_f(self) -> _Array:
        # not limited by what all genes together measured, as limma's F are not
        df: _Array = self.moderation.prior.df + self.fit.design.df_residual
        return df

    def _precision(self, names: Sequence[str]) -> tuple[_Array, int]:
        """Inverse correlations of contrasts over their rank (1 or genes, contrasts, contrasts)."""
        at = [self.names.index(name) for name in names]
        correlation = self.fit.correlations[:, at][:, :, at]
        return inverse_correlations(correlation)

    def decide(
        self,
        method: Literal["separate", "global", "nestedF"] = "separate",
        *,
        adjust: str = "BH",
        level: float = 0.05,
        lfc: float = 0.0,
    ) -> pd.DataFrame:
        """Which genes respond to which contrast: -1, 0 or 1, genes x contrasts, as ``decideTests``.

        ``separate`` adjusts within each contrast, ``global`` over all; ``nestedF`` takes the genes
        whose F is significant, and of each the contrasts without which it would not be. ``lfc``
        also asks for a log fold change beyond it.
        """
        if method not in ("separate", "global", "nestedF"):
            what = f"method={method!r} is unknown"
            raise ConfigError(what, expected="separate, global or nestedF")
        if method == "nestedF":
            chosen = self._nested(adjust, level)
        else:
            p = self.p.to_numpy()
            if method == "global":
                adjusted = adjust_p(p.ravel(order="F"), adjust).reshape(p.shape, order="F")
            else:
                adjusted = np.column_stack([adjust_p(column, adjust) for column in p.T])
            chosen = np.sign(self.logfc.to_numpy()) * (adjusted < level)
        if lfc > 0:
            chosen = chosen * (np.abs(self.logfc.to_numpy()) > lfc)
        return pd.DataFrame(chosen.astype(int), self.t.index, list(self.names))

    def _nested(self, adjust: str, level: float) -> _Array:
        """limma's ``classifyTestsF`` of the genes whose F is significant."""
        if self.lfc is not None:
            what = "nestedF goes by F, which a test of a minimal fold change does not have"
            raise ConfigError(what, fix="separate or global, or ebayes() in place of treat()")
        names = list(self.names)
        p = self.f_test(names)["P.Value"].to_numpy() if len(names) > 1 else self.p.to_numpy()[:, 0]
        significant = adjust_p(p, adjust) < level
        chosen = np.zeros(self.t.shape)
        if not significant.any():
            return chosen
        limit = level * share_of_level(int(significant.sum()), len(p), adjust)
        t, df = self.t.to_numpy()[significant], self._df_of_f()[significant]
        if len(names) == 1:
            alone = log_p_t(t[:, 0], df) < np.log(limit)
            chosen[significant] = (np.sign(t[:, 0]) * alone)[:, None]
            return chosen
        precision, rank = self._precision(names)
        if len(precision) > 1:
            precision = precision[significant]

        def beyond(x: _Array) -> NDArray[np.bool_]:
            found: NDArray[np.bool_] = log_p_f(quadratic(x, precision), rank, df) < np.log(limit)
            return found

        chosen[significant] = classify(t, beyond)
        return chosen

    def to_de_table(self) -> DETable:
        """The statistics as a DE table, whose conditions are the contrasts."""
        parts = {"logfc": self.logfc, "t": self.t, "se": self.se, "log10_p": self.log10_p}
        index = pd.Index(list(self.names), name="contrast")
        frames: dict[str, Any] = {
            name: pd.DataFrame(part.to_numpy().T, index, self.t.index)
            for name, part in parts.items()
        }
        shape = frames["t"].shape
        for name, row in (("ave_expr", self.fit.ave_expr), ("df", self.df)):
            values = np.broadcast_to(row.to_numpy(), shape).copy()
            frames[name] = pd.DataFrame(values, index, self.t.index)
        adjusted = np.array([adjust_p(column, "BH") for column in self.p.to_numpy().T])
        frames["adj_p"] = pd.DataFrame(adjusted, index, self.t.index)
        conditions = self.fit.conditions().set_axis(index)
        trends = {"": self.fit.logs.mean_variance}
        info = {**dict(self.info), "lfc": self.lfc}
        return DETable(**frames, conditions=conditions, info=info, mean_variance=trends)
