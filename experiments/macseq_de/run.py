"""Does our ranking of genes agree with the published one, drug by drug? MAC-seq plate, 15 drugs at
10 uM.

    python experiments/macseq_de/run.py

The published tables come with the plate (macpie). Which method and options made them is not stated,
so ranks are compared: Spearman's correlation of our moderated t with the published signed
statistic. Most of the 500 genes were never counted on the plate; they share one value and say
nothing, so genes with counts are shown apart.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import anndata
import pandas as pd

from perturbgen.core.console import say, show_table
from perturbgen.de import DETable, limma_table

DATA = Path(os.environ.get("PERTURBGEN_DATA", "../shared/data")) / "counts"
ENOUGH = 100  # counts of a gene over the whole plate


def r_name(name: str) -> str:
    """The name that R's make.names gives a condition."""
    return re.sub(r"[^A-Za-z0-9_.]", ".", name)


def compare(path: Path, table: DETable, counted: pd.Index) -> dict[str, object]:
    """One drug's row."""
    published = pd.read_csv(path).set_index("gene")
    condition = next(name for name in table.t.index if r_name(name) == path.stem)
    ours, theirs = table.t.loc[condition], published["metric"].reindex(table.genes)
    top = set(theirs[counted].abs().nlargest(20).index) & set(
        ours[counted].abs().nlargest(20).index
    )
    return {
        "drug": condition,
        "counted genes": ours[counted].corr(theirs[counted], method="spearman"),
        "all genes": ours.corr(theirs, method="spearman"),
        "log fold change": table.logfc.loc[condition].corr(published["log2FC"], method="spearman"),
        "shared of top 20": len(top),
    }


def main() -> None:
    plate = anndata.read_h5ad(DATA / "macseq_plate.h5ad")
    table = limma_table(plate, design="~0 + {group}", group="combined_id", control="DMSO_0")
    total = plate.to_df().sum()
    counted = total.index[total >= ENOUGH]
    rows = [
        compare(path, table, counted)
        for path in sorted((DATA / "macseq_published_de").glob("*.csv"))
    ]
    show_table(
        rows,
        title=f"Spearman's correlation with the published tables; {len(counted)} counted genes",
    )
    medians = pd.DataFrame(rows).drop(columns="drug").median()
    say("median: " + ", ".join(f"{name} {value:.3f}" for name, value in medians.items()))


if __name__ == "__main__":
    main()
