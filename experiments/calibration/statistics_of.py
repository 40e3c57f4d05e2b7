"""What is known of the real experiment, computed of any experiment in the same way.

Each function returns a flat dictionary, statistic: value. What an experiment is too small for is
NaN or absent, and the log says why.
"""

from __future__ import annotations

import logging
import warnings
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from forms import Forms, well_effects
from public import PUBLIC
from scipy.stats import rankdata

from perturbgen.baselines import make
from perturbgen.core.errors import PerturbgenError, SchemaError
from perturbgen.core.tables import VEHICLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from perturbgen.de import DETable

log = logging.getLogger("perturbgen.experiments.calibration")

TYPES = {"b": "B cells", "nk": "NK cells", "t": "T cells", "myeloid": "Myeloid cells"}
TARGETS = ["B cells", "Myeloid cells"]
QUANTILES = (5, 10, 25, 50, 75, 90, 95)
CONTROLS = ("Belinostat", "Dabrafenib")
# names of the baselines here and in the published table
PUBLISHED = {
    "random_draw": "sample",
    "gene_mean": "mean_outcome",
    "cell_type_mean": "mean_across_celltypes",
    "compound_mean": "mean_across_compounds",
}
_DRAWS = 5


# ---- ranks


def rank_scores(table: DETable, drugs: list[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """Standardised ranks of logFC x |log10 adjusted p|: (4 cell types, drugs, genes), drugs.

    Of the drugs that every cell type has, the vehicle and ``drugs`` not named excepted.
    """
    score = table.logfc * np.abs(np.log10(table.adj_p.clip(lower=1e-300)))
    # adjusted p of exactly 1 would tie: they keep the order of their fold changes
    score = score + 1e-9 * table.logfc
    kinds = score.index.get_level_values(0)
    everywhere = set.intersection(
        *(set(score.index[kinds == name].get_level_values(1)) for name in TYPES.values())
    )
    chosen = sorted(everywhere - {VEHICLE})
    if len(chosen) < 3 or score.shape[1] < 20:
        raise SchemaError(
            f"{len(chosen)} compounds in all cell types, {score.shape[1]} genes tested",
            expected="3 compounds and 20 genes or more",
        )
    if drugs is not None and len(known := sorted(set(drugs) & everywhere)) >= len(chosen) / 2:
        chosen = known
    ranks = [rankdata(score.loc[name].loc[chosen], axis=1) for name in TYPES.values()]
    return standardised(np.array(ranks)), chosen


def standardised(z: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and variance 1, in the last axis."""
    z = z - z.mean(axis=-1, keepdims=True)
    return z / z.std(axis=-1, keepdims=True)


def of_ranks(z: np.ndarray, drugs: list[str], places: pd.DataFrame) -> dict[str, float]:
    """Agreement of drugs between and within cell types (4, drugs, genes), quantiles, places."""
    names, n = list(TYPES), len(drugs)
    other = ~np.eye(n, dtype=bool)
    here = places.reindex(drugs)
    known = here["row"].notna().to_numpy()
    library, row, col = (
        here[name].to_numpy()[:, None] == here[name].to_numpy()[None, :]
        for name in ("library", "row", "col")
    )
    both = other & known[:, None] & known[None, :]
    masks = {"row": both & library & row, "column": both & library & col & ~row}
    masks["elsewhere"] = both & ~(library & row)
    found: dict[str, float] = {}
    concordance, beside = np.zeros(n), {name: [] for name in masks}
    same, different = {}, {}
    for i, j in combinations(range(4), 2):
        r = z[i] @ z[j].T / z.shape[2]
        pair = f"{names[i]}-{names[j]}"
        same[f"same drug, {pair}"] = np.diag(r).mean()
        different[f"different drugs, {pair}"] = _mean(r[other])
        concordance += np.diag(r) / 6
        for name, mask in masks.items():
            beside[name].append(_mean(r[mask]))
    found |= same | different
    for i, name in enumerate(names):
        r = z[i] @ z[i].T / z.shape[2]
        found[f"different drugs, within {name}"] = _mean(r[other])
    for q, value in zip(QUANTILES, np.percentile(concordance, QUANTILES), strict=True):
        found[f"a drug's mean over pairs, {q} %"] = value
    for name, values in beside.items():
        label = "elsewhere" if name == "elsewhere" else f"of one plate {name}"
        found[f"different drugs, between types, {label}"] = float(np.mean(values))
    return {name: float(value) for name, value in found.items()}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


# ---- effects of compounds


def of_effects(forms: Forms) -> dict[str, float]:
    """As published for 145 compounds: conserved and context parts, and the whole's two parts."""
    effects, obs = well_effects(forms.bulk)
    table = compound_effects(effects, obs)
    additive, interaction = decomposition(effects, obs)
    whole = {"effects: mean square over other types": additive}
    whole["effects: reproducible interaction"] = interaction
    return of_compound_effects(table) | whole


def of_compound_effects(table: pd.DataFrame) -> dict[str, float]:
    """Quantiles of the compounds' conserved effects, and their context parts."""
    conserved, context = table["conserved"], table["context"]
    found = {
        f"effects: conserved, {q} %": float(np.percentile(conserved, q))
        for q in (10, 25, 50, 75, 90, 95)
    }
    found["effects: conserved, mean"] = float(conserved.mean())
    # Less what the weakest twentieth has, which is noise: how much there is of it depends on which
    # genes the published numbers are of, and that is not said.
    weakest = np.percentile(conserved, 5)
    for q in (25, 50, 75, 90, 95):
        found[f"effects: above the weakest, {q} %"] = float(np.percentile(conserved, q) - weakest)
    found["effects: above the weakest, mean"] = float(conserved.mean() - weakest)
    found["effects: context, mean"] = float(context.mean())
    found["effects: context above 0"] = float((context > 0).mean())
    return found


def compound_effects(effects: np.ndarray, obs: pd.DataFrame) -> pd.DataFrame:
    """``conserved`` and ``context`` of every compound (index: sm_name)."""
    rows = {}
    for name, here in _by_compound(obs):
        residual = effects[here] - (mean := effects[here].mean(axis=0))
        products, pairs = _donor_products(residual, obs.iloc[here])
        context = max(products / pairs, 0.0) if pairs else np.nan
        rows[name] = {"conserved": float(np.mean(mean**2)), "context": context}
    return pd.DataFrame.from_dict(rows, orient="index")


def decomposition(effects: np.ndarray, obs: pd.DataFrame) -> tuple[float, float]:
    """Mean square of a compound's mean over the other types, reproducible interaction."""
    square = cross = 0.0
    pairs = 0
    for _, here in _by_compound(obs):
        own, kinds = effects[here], obs["cell_type"].astype(str).to_numpy()[here]
        prior = np.zeros_like(own)
        for kind in np.unique(kinds):
            if (kinds != kind).any():
                prior[kinds == kind] = own[kinds != kind].mean(axis=0)
        square += float((prior**2).mean(axis=1).sum())
        products, n = _donor_products(own - prior, obs.iloc[here])
        cross, pairs = cross + products, pairs + n
    return square / len(effects), max(cross / max(pairs, 1), 0.0)


def _by_compound(obs: pd.DataFrame) -> list[tuple[str, np.ndarray]]:
    codes, names = pd.factorize(obs["sm_name"].astype(str), sort=True)
    return [(name, np.flatnonzero(codes == i)) for i, name in enumerate(names)]


def _donor_products(residual: np.ndarray, obs: pd.DataFrame) -> tuple[float, int]:
    """Sum of mean products of two donors' residuals in one cell type, and their number."""
    total, pairs = 0.0, 0
    kinds = obs["cell_type"].astype(str).to_numpy()
    donors = obs["donor_id"].astype(str).to_numpy()
    for kind in np.unique(kinds):
        here = np.flatnonzero(kinds == kind)
        sums = [
            (residual[here[donors[here] == d]].sum(axis=0), int((donors[here] == d).sum()))
            for d in np.unique(donors[here])
        ]
        for (a, n), (b, m) in combinations(sums, 2):
            total += float(np.mean(a * b))
            pairs += n * m
    return total, pairs


# ---- the published table of the benchmark


def of_benchmark(forms: Forms) -> dict[str, float]:
    """Model-free predictors of the private rows: RMSE, MAE and Pearson, means over rows."""
    train, truth = benchmark_rows(forms)
    if len(truth) < 2 or len(train) < 10:
        raise SchemaError(
            f"{len(train)} rows to learn from and {len(truth)} private ones",
            expected="10 and 2 or more",
        )
    found = _scores("zeros", truth * 0, truth)
    for name in PUBLISHED:
        draws = []
        for seed in range(_DRAWS if name == "random_draw" else 1):
            rng = np.random.default_rng(seed)
            draws.append(_scores(name, make(name).fit(train, rng=rng).predict(truth.index), truth))
        found |= {key: float(np.mean([draw[key] for draw in draws])) for key in draws[0]}
    return found


def benchmark_rows(forms: Forms) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Signed -log10 p within +-4: the rows to learn from and the private ones."""
    values = forms.benchmark.signed_log10_p.rename_axis(["cell_type", "compound"])
    kind, compound = (values.index.get_level_values(i) for i in (0, 1))
    values = values[compound != VEHICLE]
    kind, compound = (values.index.get_level_values(i) for i in (0, 1))
    known = {name for name, n in _known(forms.trained).items() if n}
    private = kind.isin(TARGETS) & ~compound.isin([*known, *public_of(forms)])
    return values[~private], values[private]


def _known(trained: pd.MultiIndex) -> pd.Series:
    kind = trained.get_level_values(0)
    return pd.Series(1, trained[kind.isin(TARGETS)].get_level_values(1)).groupby(level=0).sum()


def public_of(forms: Forms) -> list[str]:
    """Compounds of the public board; where the experiment has others, about as many of them."""
    obs = forms.bulk.obs
    names = sorted(set(obs.loc[obs["sm_lincs_id"].astype(str).isin(PUBLIC), "sm_name"].astype(str)))
    if len(names) >= len(PUBLIC) / 2:
        return names
    every = sorted(set(obs["sm_name"].astype(str)) - set(_known(forms.trained).index) - {VEHICLE})
    return every[: round(0.39 * len(every))]


def _scores(name: str, predicted: pd.DataFrame, truth: pd.DataFrame) -> dict[str, float]:
    p, t = predicted.loc[truth.index, truth.columns].to_numpy(), truth.to_numpy()
    found = {f"{name}: RMSE": float(np.sqrt(((p - t) ** 2).mean(axis=1)).mean())}
    found[f"{name}: MAE"] = float(np.abs(p - t).mean(axis=1).mean())
    if name != "zeros":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            r = (standardised(p) * standardised(t)).mean(axis=1)
        found[f"{name}: Pearson"] = float(np.nan_to_num(r).mean())
    return found


# ---- the competition's table


def of_competition(forms: Forms) -> dict[str, float]:
    """Mean, SD, median and zeros' score of the rows to learn from; gene SDs; the public rows."""
    table = forms.competition.signed_log10_p.rename_axis(["cell_type", "compound"])
    rows = table.reindex(forms.trained).dropna(how="all")
    values = rows.to_numpy()
    if len(rows) < 2:
        raise SchemaError(f"{len(rows)} rows to learn from", expected="2 or more")
    compound, kind = table.index.get_level_values(1), table.index.get_level_values(0)
    public = table[kind.isin(TARGETS) & compound.isin(public_of(forms))]
    found = {"table: mean": values.mean(), "table: SD": values.std()}
    found |= {"table: median": np.median(values), "table: zeros": _zeros(values)}
    found["table: zeros, public rows"] = _zeros(public.to_numpy())
    if "NK cells" in rows.index:
        found |= of_nk_rows(rows.loc["NK cells"])
    # a row is one-sided where three genes of four are on one side
    up = (values > 0).mean(axis=1)
    found["table: rows with most genes on one side"] = float((np.abs(up - 0.5) > 0.25).mean())
    return {name: float(value) for name, value in found.items()}


def of_nk_rows(rows: pd.DataFrame) -> dict[str, float]:
    """Quartiles of the genes' SDs over the NK rows."""
    return {f"table: NK gene SD, {q} %": float(np.percentile(rows.std(), q)) for q in (25, 50, 75)}


def _zeros(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean(axis=1)).mean()) if len(values) else float("nan")


def every_statistic(forms: Forms, drugs: list[str] | None = None) -> dict[str, float]:
    """All of them; what an experiment is too small for is left out, and the log says why.

    ``drugs`` are those of the real ranks.
    """

    def ranks() -> dict[str, float]:
        z, names = rank_scores(forms.benchmark, drugs)
        return of_ranks(z, names, forms.places)

    def passing() -> dict[str, float]:
        kept = len(forms.benchmark.genes) / forms.bulk.n_vars
        return {"share of genes that pass the filter": kept}

    families: dict[str, Callable[[], dict[str, float]]] = {
        "ranks": ranks,
        "effects of compounds": lambda: of_effects(forms),
        "the benchmark's table": lambda: of_benchmark(forms),
        "the competition's table": lambda: of_competition(forms),
        "genes": passing,
    }
    found: dict[str, float] = {}
    for name, compute in families.items():
        try:
            found |= compute()
        except PerturbgenError as error:
            log.warning("too small an experiment for %s: %s", name, error)
    return found
