"""The map of an experiment's samples on the DE page: which wells are alike, and which stand out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from perturbgen.core.page import PALETTE
from perturbgen.de.counts import as_matrix
from perturbgen.de.mds import mds
from perturbgen.de.normalise import log_cpm, tmm_factors

if TYPE_CHECKING:
    from anndata import AnnData
    from plotly.graph_objects import Figure

_PAIRWISE: Final = 120  # samples; each pair's own genes take seconds for more
_COLOURS: Final = len(PALETTE)


def sample_figure(counts: AnnData, info: Mapping[str, Any]) -> tuple[Figure, str]:
    """Samples by leading log fold changes, and a caption that says of which genes."""
    from plotly.graph_objects import Figure

    values, samples, _ = as_matrix(counts)
    y = log_cpm(values, norm_factors=tmm_factors(values))
    common = len(samples) > _PAIRWISE
    found = mds(pd.DataFrame(y.to_numpy(), samples), common=common)
    obs, group, by = counts.obs, info.get("group"), info.get("by")
    labels = _labels(obs, group, by, info.get("control"))
    shown = [name for name in dict.fromkeys((by, group, "donor", "plate")) if name in obs]
    texts = obs[shown].astype(str).agg(", ".join, axis=1) if shown else pd.Series("", obs.index)
    figure = Figure()
    for i, label in enumerate(labels.unique()):
        rows = np.flatnonzero((labels == label).to_numpy())
        points = found.coordinates.iloc[rows]
        figure.add_scattergl(
            x=points["dim1"],
            y=points["dim2"],
            mode="markers",
            name=str(label),
            text=[f"{samples[int(k)]}: {texts.iloc[k]}" for k in rows],
            hoverinfo="text",
            marker={"size": 6, "opacity": 0.8, "color": PALETTE[i % _COLOURS]},
        )
    axes = [f"leading log fold change {k + 1} ({found.share.iloc[k]:.0%})" for k in (0, 1)]
    figure.update_layout(height=480, xaxis_title=axes[0], yaxis_title=axes[1])
    genes = "the 500 genes that vary most" if common else "the 500 genes that differ most"
    ends = "" if common else ", each pair's own"
    return figure, f"Distances are the root mean square log2 fold change of {genes}{ends}."


def _labels(obs: pd.DataFrame, group: str | None, by: str | None, control: Any) -> pd.Series:
    """What the samples are coloured by: whatever of the two has few enough levels."""
    for name in (by, group):
        if name in obs and 1 < obs[name].nunique() <= _COLOURS:
            return obs[name].astype(str)
    if group in obs and control is not None:
        treated = obs[group].astype(str) != str(control)
        return treated.map({True: "others", False: str(control)})
    return pd.Series("samples", obs.index)
