"""The tables and the page of a cross-modal comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from match_scores import matched_difference, query_scores, score_folds

from perturbgen.profiles.crossmodal import TORN, Matched

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_STRATA: Final = ("both", "one", "neither")
_SHOWN: Final = {
    "chance": "mAP chance",
    "null": "mAP null",
    "p": "mAP p",
    "median rank": "median_q",
    "R@1": "R@1",
    "R@10": "R@10",
    "R@10 chance": "R@10 chance",
}


def scored(
    matched: Mapping[str, Matched],
    meta: pd.DataFrame,
    *,
    names: tuple[str, str],
    permutations: int,
    draws: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """All numbers: a row for each method, direction and stratum."""
    parts = []
    for method, found in matched.items():
        for direction, folds in zip(
            _directions(names), (found.forward, found.backward), strict=True
        ):
            table = score_folds(
                folds,
                meta["compound"],
                strata=meta["stratum"],
                permutations=permutations,
                draws=draws,
                rng=rng,
            )
            table.insert(0, "direction", direction)
            table.insert(0, "method", method)
            parts.append(table)
    return pd.concat(parts, ignore_index=True)


def _directions(names: tuple[str, str]) -> tuple[str, str]:
    """Who asks whom."""
    return f"{names[0]} to {names[1]}", f"{names[1]} to {names[0]}"


def retrieval_rows(scores: pd.DataFrame, *columns: str) -> list[dict[str, Any]]:
    """What people read, after the named columns."""
    return [
        {name: row[name] for name in columns}
        | {
            "n": row["n"],
            "mAP": round(row["mAP"], 3),
            "95 % interval": f"{row['mAP low']:.3f} to {row['mAP high']:.3f}",
            **{shown: round(row[name], 3) for shown, name in _SHOWN.items()},
        }
        for row in scores.to_dict("records")
    ]


def strata_rows(scores: pd.DataFrame, method: str) -> list[dict[str, Any]]:
    """One method by reproducibility, in both assays first."""
    part = scores[(scores["method"] == method) & scores["stratum"].isin(_STRATA)]
    return retrieval_rows(
        part.sort_values("stratum", key=lambda names: names.map(_STRATA.index), kind="stable"),
        "stratum",
        "direction",
    )


def gaps(
    matched: Mapping[str, Matched],
    meta: pd.DataFrame,
    *,
    ours: str,
    draws: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """mAP of one method minus each other's, both directions averaged, with paired intervals over
    compounds.
    """
    precision = {name: _both_ways(found) for name, found in matched.items()}
    rows = []
    for name, values in precision.items():
        if name != ours:
            gap, low, high = matched_difference(
                precision[ours], values, meta["compound"], draws=draws, rng=rng
            )
            verdict = "better" if low > 0 else "worse" if high < 0 else "cannot be told apart"
            interval = f"{low:.3f} to {high:.3f}"
            rows.append(
                {
                    f"{ours} against": name,
                    "mAP gained": round(gap, 3),
                    "95 % interval": interval,
                    ours: verdict,
                }
            )
    return rows


def _both_ways(found: Matched) -> pd.Series:
    """Average precision of each perturbation, the mean of both directions."""
    forward, backward = (query_scores(folds)["mAP"] for folds in (found.forward, found.backward))
    return (forward + backward.loc[forward.index]) / 2


def chosen_rows(matched: Mapping[str, Matched]) -> list[dict[str, Any]]:
    """Which settings the inner folds chose."""
    return [
        {
            "method": name,
            "chosen in the folds": "; ".join(
                f"{setting} ({count})" for setting, count in counts.items()
            ),
        }
        for name, counts in (
            (name, pd.Series(found.chosen).value_counts()) for name, found in matched.items()
        )
        if name != TORN
    ]


def method_figure(scores: pd.DataFrame) -> Figure:
    """mAP of every method with its interval, one colour a direction; dotted: chance."""
    import plotly.graph_objects as go

    from perturbgen.core.page import PALETTE

    whole = scores[scores["stratum"] == "all"]
    figure = go.Figure()
    for i, (direction, part) in enumerate(whole.groupby("direction", sort=False)):
        figure.add_scatter(
            x=part["mAP"],
            y=part["method"],
            mode="markers",
            name=str(direction),
            orientation="h",
            offsetgroup=i,
            marker={"color": PALETTE[i], "size": 10, "symbol": ("circle", "diamond")[i]},
            error_x={
                "array": part["mAP high"] - part["mAP"],
                "arrayminus": part["mAP"] - part["mAP low"],
                "thickness": 1.5,
            },
        )
    figure.add_vline(
        x=float(whole["mAP chance"].iloc[0]),
        line={"dash": "dot", "color": "#57606a"},
        annotation_text="chance",
        annotation_position="top",
    )
    figure.update_xaxes(title="mAP of withheld perturbations", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure.update_layout(
        height=120 + 52 * whole["method"].nunique(),
        scattermode="group",
        legend={"orientation": "h", "y": -0.22},
    )


def strata_figure(scores: pd.DataFrame, method: str) -> Figure:
    """mAP by reproducibility with intervals, and what partners exchanged within the stratum would
    give.
    """
    import plotly.graph_objects as go

    from perturbgen.core.page import PALETTE

    part = scores[(scores["method"] == method) & scores["stratum"].isin(_STRATA)]
    figure = go.Figure()
    for i, (direction, rows) in enumerate(part.groupby("direction", sort=False)):
        rows = rows.set_index("stratum").reindex(
            [name for name in _STRATA if name in set(rows["stratum"])]
        )
        places = [f"{name} (n = {n:.0f})" for name, n in rows["n"].items()]
        figure.add_scatter(
            x=places,
            y=rows["mAP"],
            mode="markers",
            name=str(direction),
            offsetgroup=i,
            marker={"color": PALETTE[i], "size": 10, "symbol": ("circle", "diamond")[i]},
            error_y={
                "array": rows["mAP high"] - rows["mAP"],
                "arrayminus": rows["mAP"] - rows["mAP low"],
            },
        )
        figure.add_scatter(
            x=places,
            y=rows["mAP null"],
            mode="markers",
            name="null",
            offsetgroup=i,
            showlegend=i == 0,
            legendrank=2000,
            marker={"color": "#57606a", "symbol": "line-ew-open", "size": 18, "line": {"width": 2}},
        )
    figure.update_yaxes(title="mAP", rangemode="tozero").update_xaxes(
        title="replicates agree in … of the two assays"
    )
    return figure.update_layout(
        height=420, scattermode="group", legend={"orientation": "h", "y": 1.15}
    )


def variate_figure(correlations: pd.DataFrame, planted: int | None) -> Figure:
    """Withheld correlation of each pair of variates, a dot a fold; left of the line are as many as
    were planted.
    """
    import plotly.graph_objects as go

    from perturbgen.core.page import PALETTE

    figure = go.Figure()
    place = np.arange(1, correlations.shape[1] + 1)
    for fold, row in enumerate(correlations.to_numpy()):
        figure.add_scatter(
            x=place,
            y=row,
            mode="markers",
            marker={"color": PALETTE[5], "size": 6, "opacity": 0.6},
            name="folds",
            showlegend=fold == 0,
        )
    figure.add_scatter(
        x=place,
        y=correlations.mean(),
        mode="lines+markers",
        name="mean",
        marker={"color": PALETTE[0], "size": 8},
    )
    figure.add_hline(y=0, line={"color": "#57606a", "width": 1})
    if planted is not None:
        figure.add_vline(
            x=planted + 0.5,
            line={"dash": "dot", "color": "#57606a"},
            annotation_text=f"{planted} planted",
            annotation_position="top",
        )
    figure.update_xaxes(title="pair of variates", dtick=max(1, len(place) // 10)).update_yaxes(
        title="correlation when withheld"
    )
    return figure.update_layout(height=380, legend={"orientation": "h", "y": 1.15})
