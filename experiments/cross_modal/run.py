"""Does an image profile find the L1000 profile of its perturbation, and the other way round?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.cli import run_experiment
from perturbgen.core.console import say, show_table
from perturbgen.core.export import write_table

if TYPE_CHECKING:
    import pandas as pd

    from perturbgen.core.page import Page
    from perturbgen.profiles.crossmodal import Matched, PairedProfiles

NAMES = ("images", "L1000")
OURS = "RGCCA"
DATASETS = ("lincs", "cdrp-bio", "luad", "taorf")

Fold = Annotated[int, typer.Option(min=2, help="Folds of compounds.")]


@dataclass(frozen=True)
class Protocol:
    """How often things are drawn."""

    folds: int
    inner: int
    permutations: int
    draws: int
    seed: int


def main(
    images: Annotated[
        Path | None, typer.Argument(help="Image profiles, csv(.gz) or parquet, a row a well.")
    ] = None,
    l1000: Annotated[
        Path | None, typer.Argument(help="L1000 profiles of the same compounds and doses.")
    ] = None,
    published: Annotated[
        Path | None,
        typer.Option(help="Folder imaging/ of the real data: what is published of both assays."),
    ] = None,
    label: Annotated[str, typer.Option(help="Column of compounds.")] = "Metadata_broad_sample",
    dose: Annotated[
        str, typer.Option(help="Column of doses; '' for none.")
    ] = "Metadata_mmoles_per_liter",
    plate: Annotated[str, typer.Option(help="Column of plates; '' for none.")] = "Metadata_Plate",
    control: Annotated[
        str, typer.Option(help="Vehicle wells; '' if already removed.")
    ] = "Metadata_broad_sample=DMSO",
    moa: Annotated[str, typer.Option(help="Column of mechanisms; '' for none.")] = "Metadata_moa",
    features: Annotated[
        str, typer.Option(help="Pattern of feature columns; '' for every other number.")
    ] = "",
    l1000_label: Annotated[str, typer.Option(help="The same of L1000.")] = "pert_id",
    l1000_dose: Annotated[str, typer.Option(help="The same of L1000.")] = "pert_dose",
    l1000_plate: Annotated[str, typer.Option(help="The same of L1000.")] = "det_plate",
    l1000_control: Annotated[
        str, typer.Option(help="The same of L1000.")
    ] = "pert_type=ctl_vehicle",
    l1000_features: Annotated[str, typer.Option(help="The same of L1000.")] = "_at$",
    out: Annotated[Path, typer.Option(help="Folder for the report and tables.")] = Path(
        "runs/cross_modal"
    ),
    folds: Fold = 5,
    inner: Fold = 3,
    permutations: Annotated[int, typer.Option(min=99, help="Of the null.")] = 999,
    draws: Annotated[int, typer.Option(min=100, help="Of the bootstrap over compounds.")] = 1000,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the fixture, folds, null and bootstrap.")
    ] = 0,
) -> None:
    """Fit maps between two assays on some compounds, let the others find their partners, compare
    with chance.

    Without tables a fixture with a planted truth is made.

    Example: python experiments/cross_modal/run.py cellpainting_level4.csv.gz l1000_level4.csv.gz
    """
    import numpy as np
    from pairs import Columns, pair, read_wells
    from published import plate_and_maps

    from perturbgen.core.errors import ConfigError

    if (images is None) != (l1000 is None) or (images is not None and published is not None):
        raise ConfigError(
            "one table of profiles only, or tables with --published",
            expected="both tables, --published FOLDER, or neither for a fixture",
        )
    protocol = Protocol(folds, inner, permutations, draws, seed)
    if published is not None:
        run(
            plate_and_maps(published),
            protocol,
            out,
            "one real plate and 2-D maps of L1000",
            folder=published,
        )
        return
    truth = images is None
    columns = Columns(label, dose, plate, moa, control, features)
    other = Columns(l1000_label, l1000_dose, l1000_plate, "", l1000_control, l1000_features)
    if images is None or l1000 is None:
        images, l1000, columns, other = fixture(out / f"fixture{seed}", seed)
    tables = read_wells(images, columns), read_wells(l1000, other)
    pairs = pair(*tables, null_groups=1000, rng=np.random.default_rng(seed))
    run(
        pairs,
        protocol,
        out,
        "a fixture" if truth else f"{images.name} and {l1000.name}",
        truth=images.parent if truth else None,
    )


def fixture(folder: Path, seed: int) -> tuple[Path, Path, Any, Any]:
    """Made-up tables and their columns."""
    from paired_fixture import IMAGES, L1000, write_paired

    if not folder.exists():
        write_paired(folder, seed=seed)
    return folder / "images.csv.gz", folder / "l1000.csv.gz", IMAGES, L1000


def run(
    pairs: PairedProfiles,
    protocol: Protocol,
    out: Path,
    what: str,
    *,
    truth: Path | None = None,
    folder: Path | None = None,
) -> None:
    """All methods on the same folds; tables, figures, page."""
    import matching_report as report
    import numpy as np

    settings = methods(pairs, truth)
    rng = np.random.default_rng([protocol.seed, 1])
    found = pairs.match(
        settings, folds=protocol.folds, inner=protocol.inner, rng=rng, torn_from=OURS
    )
    scores = report.scored(
        found,
        pairs.meta,
        names=NAMES,
        permutations=protocol.permutations,
        draws=protocol.draws,
        rng=rng,
    )
    out.mkdir(parents=True, exist_ok=True)
    write_table(scores, out / "scores.csv")
    page = opening(pairs, what, found, scores, protocol, rng)
    if pairs.meta["moa"].notna().any():
        mechanisms(page, pairs, settings[OURS], protocol, rng)
    variates(page, pairs, protocol, planted=truth is not None)
    if folder is not None:
        without_profiles(page, folder, protocol.seed)
    page.section("Settings", "Chosen for each fold by folds of its training compounds.")
    page.table(report.chosen_rows(found))
    say(f"wrote {page.write(out / 'report.html')}")


def methods(pairs: PairedProfiles, truth: Path | None) -> dict[str, list[Any]]:
    """Names and settings; of a fixture also the maps that were planted."""
    from paired_fixture import read_truth

    from perturbgen.profiles.crossmodal import Setting

    found = pairs.methods()
    if truth is None:
        return found
    planted = read_truth(truth)
    return found | {"the planted maps": [Setting.given(planted.images, planted.l1000)]}


def opening(
    pairs: PairedProfiles,
    what: str,
    found: Mapping[str, Matched],
    scores: pd.DataFrame,
    protocol: Protocol,
    rng: Any,
) -> Page:
    """The page's sections on retrieval."""
    import matching_report as report

    from perturbgen.core.page import Page

    compounds = pairs.meta["compound"].nunique()
    page = Page(
        "Images and L1000: which profile finds which?",
        f"{len(pairs):,} perturbations of {compounds:,} compounds in both assays; {what}.",
    )
    whole = scores[scores["stratum"] == "all"]
    show_table(
        report.retrieval_rows(whole, "method", "direction"),
        title=f"{what}: withheld perturbations find their partner in the other assay",
    )
    page.section(
        "Retrieval both ways",
        f"Maps are fitted on the compounds of {protocol.folds - 1} folds; each withheld "
        "perturbation then looks for "
        "its partner among the withheld of its fold. One partner is right, so that mAP is the mean "
        "of 1 / rank; the "
        "median rank is a share of the candidates (0 is best, .5 chance). The null exchanges whole "
        "compounds' "
        "partners; the intervals draw whole compounds.",
    )
    page.figure(
        report.method_figure(scores),
        "Torn pairs are the protocol's own control: they must lie at chance.",
    )
    for direction, rows in whole.groupby("direction", sort=False):
        page.text(f"{direction}:")
        page.table(report.retrieval_rows(rows, "method"))
    against = report.gaps(found, pairs.meta, ours=OURS, draws=protocol.draws, rng=rng)
    page.section(
        f"Is {OURS} worth it?",
        "Both directions averaged; the same compounds are drawn for both methods.",
    )
    page.table(against)
    by_stratum = report.strata_rows(scores, OURS)
    if by_stratum:
        show_table(by_stratum, title=f"{OURS} by reproducibility")
        page.section(
            "Strata",
            "A perturbation is reproducible in an assay if its replicates correlate above 95 % of "
            "random groups. The "
            "null exchanges partners within the stratum only, since reproducible profiles resemble "
            "each other anyway.",
        )
        page.figure(
            report.strata_figure(scores, OURS),
            "Points: mAP with 95 % intervals; dashes: the null's mean.",
        )
        page.table(by_stratum)
    return page


def mechanisms(
    page: Page, pairs: PairedProfiles, shared: list[Any], protocol: Protocol, rng: Any
) -> None:
    """The section on mechanisms, where there are enough of them."""
    from mechanisms import mechanism_table

    from perturbgen.core.errors import SchemaError

    try:
        table = mechanism_table(
            pairs,
            shared,
            folds=protocol.folds,
            inner=protocol.inner,
            draws=protocol.draws,
            rng=rng,
            names=NAMES,
        )
    except SchemaError as error:
        page.section("Mechanisms", f"Not asked: {error.what}.")
        return
    rows: list[dict[str, Any]] = table.round(3).to_dict("records")  # type: ignore[assignment]
    show_table(rows, title="mechanism of withheld compounds")
    page.section(
        "Mechanisms",
        "A linear discriminant names the mechanism of withheld compounds from one assay, from both "
        "side by side, from "
        "the variates, and from the mean of the two assays' probabilities; 'largest' names the "
        "commonest always.",
    )
    page.table(rows)


def variates(page: Page, pairs: PairedProfiles, protocol: Protocol, *, planted: bool) -> None:
    """The section on withheld correlations."""
    import numpy as np
    from matching_report import variate_figure
    from paired_fixture import SHARED

    from perturbgen.profiles.crossmodal import Setting

    rng = np.random.default_rng([protocol.seed, 2])
    table = pairs.variate_correlations(Setting.correlated(0.3, 20), folds=protocol.folds, rng=rng)
    page.section(
        "How much is shared",
        "Correlation of each pair of variates over withheld perturbations, tau 0.3.",
    )
    page.figure(
        variate_figure(table, SHARED if planted else None),
        "A dot is a fold. Where the mean is zero nothing is shared any more.",
    )


def without_profiles(page: Page, folder: Path, seed: int) -> None:
    """What is published without profiles: reproducibility of both assays, a handful of genes."""
    import numpy as np
    from match_scores import mantel
    from published import overexpressed_genes, reproducible_together

    rows = [reproducible_together(folder / "paired" / "RepCorrDF.xlsx", name) for name in DATASETS]
    show_table(
        rows, title="reproducible in both assays, one or neither (published replicate correlations)"
    )
    page.section(
        "Published reproducibility",
        "Replicates correlate above 90 % of random pairs, as published.",
    )
    page.table(rows)
    images, l1000 = overexpressed_genes(folder / "paired")
    found = mantel(images, l1000, rng=np.random.default_rng(seed))
    show_table(
        [found],
        title="over-expressed genes in U2OS: do the assays agree on which resemble each other?",
    )
    page.section(
        "Seventeen genes",
        "Over-expressed in U2OS in both assays: too few to fit anything. Mantel's test asks "
        "whether the two assays "
        "agree on which genes resemble each other.",
    )
    page.table([found])


if __name__ == "__main__":
    run_experiment(main)
