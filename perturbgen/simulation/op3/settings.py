"""Every number a simulation depends on; presets are TOML files beside this module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field

from perturbgen.core.config import Count, NonNegative, Positive, Settings, Share, merge
from perturbgen.core.errors import ConfigError, suggest

_PRESETS: Final = ("tiny", "small", "op3", "op3_2025")

CELL_TYPES: Final = (
    "NK cells",
    "T cells CD4+",
    "T cells CD8+",
    "T regulatory cells",
    "B cells",
    "Myeloid cells",
)
WITHHELD_TYPES: Final = ("B cells", "Myeloid cells")
# A condition in the competition's columns.
CONDITION_KEY: Final = ["cell_type", "sm_name"]


def _six_types(value: dict[str, float]) -> dict[str, float]:
    if set(value) != set(CELL_TYPES):
        raise ValueError(f"the six cell types are {', '.join(CELL_TYPES)}")
    return value


class _PlateSettings(Settings):
    """The plates: 3 donors x 2 libraries, controls in columns 1-3, compounds from column 4 on."""

    rows: Annotated[int, Field(ge=2, le=8)] = 8  # each is pooled into one sequencing library
    compound_columns: Annotated[int, Field(ge=1, le=9)] = 9  # one well of each row
    known_compounds: Count = 15  # library compounds measured in B and Myeloid cells too
    lost_wells: Annotated[int, Field(ge=0)] = 4  # compound wells without any cell: a donor is lost


class _CellSettings(Settings):
    """How many cells of which type a well holds."""

    per_well: Positive = 583  # expected cells of an unharmed well, all six types
    proportions: Annotated[dict[str, Share], AfterValidator(_six_types)] = Field(
        {
            "NK cells": 0.26,
            "T cells CD4+": 0.34,
            "T cells CD8+": 0.09,
            "T regulatory cells": 0.017,
            "B cells": 0.16,
            "Myeloid cells": 0.123,
        }
    )
    donor_log_sd: NonNegative = 0.2  # of a donor's share of a cell type
    plate_log_sd: NonNegative = 0.04  # of a plate's share of a cell type
    well_log_sd: NonNegative = 0.15  # of the number of cells of a well
    mix_log_sd: NonNegative = 0.08  # of a cell type's share of a well


class _DepthSettings(Settings):
    """Library sizes: log-normal, by cell type, plate and sequencing library."""

    zero_fraction: Share = 0.94  # share of zeros that the mean depth is solved for
    cell_log_sd: NonNegative = 0.42  # between the cells of one well and type
    plate_log_sd: NonNegative = 0.10
    library_log_sd: NonNegative = 0.08  # between the sequencing libraries (rows)
    # Depth of the cell types, relative to each other.
    cell_types: Annotated[dict[str, Positive], AfterValidator(_six_types)] = Field(
        {
            "NK cells": 0.65,
            "T cells CD4+": 1.0,
            "T cells CD8+": 0.9,
            "T regulatory cells": 1.0,
            "B cells": 0.95,
            "Myeloid cells": 1.4,
        }
    )
    toxic_power: NonNegative = 0.5  # cells of a toxic compound have depth x survival^this


class _ExpressionSettings(Settings):
    """Baseline expression and everything that varies it except the compounds."""

    genes: Annotated[int, Field(ge=20)] = 18211
    # Which genes of a real baseline, where not all: a random subset over the whole range of
    # expression, or the best expressed ones, those with a signature first.
    subset: Literal["random", "expressed"] = "expressed"
    # Shares of a real baseline to this power: means of nuclei are flatter than those of cells.
    baseline_power: Positive = 1.0
    gene_log_sd: Positive = 2.1  # of the invented baselines between genes
    cell_type_log_sd: NonNegative = 0.5  # of a gene's baseline between cell types
    marker_fraction: Share = 0.03  # share of genes that mark one cell type (about tenfold)
    dispersion_floor: Positive = 0.12  # NB dispersion (1/size) of highly expressed genes
    dispersion_slope: NonNegative = 0.15  # dispersion = floor + slope / mean count of a cell
    dispersion_cap: Positive = 2.0  # largest dispersion before the scatter
    dispersion_log_sd: NonNegative = 0.5  # of a gene's dispersion around the trend
    donor_log_sd: NonNegative = 0.15  # of donor effects, per gene and cell type
    plate_log_sd: NonNegative = 0.07  # of plate effects, per gene
    row_log_sd: NonNegative = 0.04  # of library (plate row) effects, per gene
    well_log_sd: NonNegative = 0.12  # between wells, per gene and cell type
    # Between wells, per gene, shared by all cell types of a well. Without it no inert compound
    # agrees with itself across cell types, and in reality every one does (experiments/calibration).
    tube_log_sd: NonNegative = 0.0
    # Of the vehicle's wells from all others, per gene, in every cell type: they stand in columns of
    # their own. Every contrast holds it, so that different compounds are alike in different types.
    vehicle_log_sd: NonNegative = 0.0
    ambient: Share = 0.04  # mean share of a cell's counts that is ambient RNA of its library


class _EffectSettings(Settings):
    """What the compounds do: strength x (shared and cell-type-specific programmes + an own part).

    Calibrated on the published statistics of the competition's table: experiments/calibration.
    """

    programmes: Count = 24  # latent mechanisms that groups of compounds share
    # SD of the log2 fold changes of the median compound, before they level off. The real rows are
    # three quarters noise (25 published NK rows: median RMS .66, a null row has .61), and a tenth
    # or less are enormous: hence a small median, a wide spread and a cap.
    strength: Positive = 0.09
    # With real effects (source.effects), in place of the law: strength = scale x the root of what
    # a compound's measured mean square effect has above that of a compound without any.
    scale: Positive = 1.0
    noise: NonNegative = 0.04  # mean square effect of an inert compound
    strength_log_sd: NonNegative = 1.4  # of the strengths: most weak, few very strong
    strength_cap: Positive = 1.2  # largest strength
    # Log-sd of a compound's strength between its wells, the same for all cell types of a well: in
    # reality donors contradict each other where a compound is strong.
    well_log_sd: NonNegative = 0.0
    # How much more than others a cell type responds to all compounds.
    cell_types: Annotated[dict[str, Positive], AfterValidator(_six_types)] = Field(
        dict.fromkeys(CELL_TYPES, 1.0)
    )
    # Log2 fold changes level off towards this, up and down. Without a ceiling one gene took over a
    # cell: 98 % of the counts of PF-04691502.
    largest_change: Positive = 5.0
    shared: Share = 0.6  # share of a programme's variance that all cell types have in common
    own: Share = 0.15  # share of a compound's variance outside the programmes
    stress: Share = 0.35  # share of the stress programme in the strongest compounds
    tail_df: Annotated[float, Field(gt=2)] = 4.0  # Student's t of the gene effects
    gene_log_sd: NonNegative = 0.5  # between genes of how much they respond
    # Share of the compounds, the strongest ones, that kill cells. The real table lacks the CD8 rows
    # of its strongest compounds, which left no cells there.
    toxic_fraction: Share = 0.06
    toxicity: NonNegative = 1.4  # mean log loss of cells under a toxic compound
    # How much more than others a cell type dies of all compounds.
    frailty: Annotated[dict[str, Positive], AfterValidator(_six_types)] = Field(
        dict.fromkeys(CELL_TYPES, 1.0)
    )
    mild_toxicity: NonNegative = 0.11  # mean log loss of cells under any other compound
    signature_rank: Count = 30  # real signatures are denoised to this many components


class _StateSettings(Settings):
    """What cells of one type differ by, and which compounds change what a well is made of."""

    # SD of the log expression of a programme's genes per SD of the state; 0: cells have no states.
    # 0.45 of 15 % of the genes is what real blood cells have: experiments/states.
    strength: NonNegative = 0.0
    genes: Share = 0.15  # share of the genes that are in a programme
    subtypes: Count = 3  # discrete kinds of a cell type
    # Share of the cells that are in the cell cycle: of blood cells few.
    cycling: Annotated[dict[str, Share], AfterValidator(_six_types)] = Field(
        {
            "NK cells": 0.04,
            "T cells CD4+": 0.02,
            "T cells CD8+": 0.03,
            "T regulatory cells": 0.06,
            "B cells": 0.02,
            "Myeloid cells": 0.02,
        }
    )
    selective: Share = 0.0  # share of the compounds that harm one cell type above the others
    selectivity: NonNegative = 1.0  # their mean log loss of that cell type; 0: none is selective
    # Dabrafenib's wells hold few NK cells, as three real donors' do. Not with the published effects
    # of compounds: they would be ten times what they are.
    known_losses: bool = False


class _SourceSettings(Settings):
    """Real data that replace invented parts; empty means invented."""

    baseline: str = ""  # CSV: mean log1p(counts per million) of cell types x genes
    signatures: str = ""  # NPZ: Z, genes, drugs, cells (standardised rank scores)
    effects: str = ""  # CSV: sm_name, conserved (mean square log fold change of compounds)
    layout: str = ""  # folder with the competition's compounds, wells, rows and genes


class _FileSettings(Settings):
    """How the files are written."""

    excluded_rate: NonNegative = 1e-4  # spurious entries per true non-zero count
    multiome_cells: Annotated[int, Field(ge=6)] = 2000  # untreated cells in the multiome files
    row_group: Annotated[int, Field(ge=1000)] = 1_000_000  # rows of a parquet row group


class SimulationSettings(Settings):
    """The whole simulated experiment."""

    preset: str = "op3"  # the preset these settings began from
    plate: _PlateSettings = _PlateSettings()
    cells: _CellSettings = _CellSettings()
    depth: _DepthSettings = _DepthSettings()
    expression: _ExpressionSettings = _ExpressionSettings()
    effects: _EffectSettings = _EffectSettings()
    states: _StateSettings = _StateSettings()
    source: _SourceSettings = _SourceSettings()
    files: _FileSettings = _FileSettings()


def preset_settings(
    preset: str,
    *,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    sources: Mapping[str, str | Path | None] | None = None,
) -> SimulationSettings:
    """A preset, changed by a TOML file, then by the sources, then by ``a.b=value`` overrides."""
    if preset not in _PRESETS:
        raise ConfigError(
            f"unknown preset {preset!r}: {suggest(preset, _PRESETS)}", expected=", ".join(_PRESETS)
        )
    path = Path(__file__).parent / "presets" / f"{preset}.toml"
    base: dict[str, Any] = merge(path, {"preset": preset})
    given = {name: str(Path(path).resolve()) for name, path in (sources or {}).items() if path}
    settings = SimulationSettings.load(config, base=base)
    values = merge(settings.model_dump(), {"source": given})
    return SimulationSettings.load(base=values, overrides=overrides)
