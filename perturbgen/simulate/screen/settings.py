"""Every number a simulated L1000 screen depends on, with its meaning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from perturbgen.core.config import Settings
from perturbgen.core.errors import ConfigError, suggest

_Positive = Annotated[float, Field(gt=0)]
_NonNegative = Annotated[float, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, le=1)]

_LANDMARKS: Final = 978
WELLS: Final = 384


class _DesignSettings(Settings):
    """What is on the plates."""

    compounds: int = Field(100, ge=2, description="compounds of the library")
    genetic: int = Field(
        0,
        ge=0,
        description="hairpins (trt_sh) that act by the compounds' mechanisms, without a dose",
    )
    cell_lines: tuple[str, ...] = Field(
        ("A375", "MCF7", "PC3"), min_length=1, description="cell lines"
    )
    doses: tuple[_Positive, ...] = Field(
        (0.12, 1.11, 10.0), min_length=1, description="doses in uM"
    )
    hours: tuple[_Positive, ...] = Field((24,), min_length=1, description="times of treatment")
    replicates: int = Field(
        3, ge=1, description="replicate plates of each plate map, line and time"
    )
    vehicle_wells: int = Field(26, ge=2, description="DMSO wells of a plate")
    positive_controls: int = Field(
        2, ge=0, description="positive-control compounds, at all doses on every plate"
    )
    same_wells: bool = Field(
        True, description="replicates of a treatment share their well, as in CMap"
    )

    @model_validator(mode="after")
    def fits(self) -> _DesignSettings:
        """A plate has room for one compound at least."""
        lines = self.cell_lines
        if self.compounds_per_map < 1:
            raise ValueError(
                f"{WELLS} wells do not hold the controls and one compound at "
                f"{len(self.doses)} doses"
            )
        if len({*lines}) < len(lines) or any("_" in name or ":" in name for name in lines):
            raise ValueError(
                "cell lines need different names without '_' and ':', which separate the parts of "
                "an id"
            )
        return self

    @property
    def compounds_per_map(self) -> int:
        """How many compounds a plate map holds, at all doses; hairpins take as many wells."""
        return (WELLS - self.vehicle_wells) // len(self.doses) - self.positive_controls

    @property
    def maps(self) -> int:
        """How many plate maps hold the library."""
        return -(-(self.compounds + self.genetic) // self.compounds_per_map)


class _BiologySettings(Settings):
    """What compounds do, in a space of pathways."""

    pathways: int = Field(30, ge=2, description="directions that responses are made of")
    mechanisms: int = Field(10, ge=1, description="mechanisms of action")
    gated_share: _Share = Field(
        0.3, description="share of the mechanisms that cells of the other state answer inversely"
    )
    own_share: _Share = Field(
        0.5, description="share of a compound's effect that is its own, not its mechanism's"
    )
    strength: _NonNegative = Field(
        1.2, description="effect at full response, in standard deviations of a well's noise"
    )
    strength_log_sd: _NonNegative = Field(0.4, description="log-sd of the strength over compounds")
    potency_log_sd: _NonNegative = Field(0.7, description="sd of log10 EC50 around 1 uM")
    line_sd: _NonNegative = Field(
        0.4, description="log-sd of a cell line's sensitivity to a mechanism"
    )
    state: _NonNegative = Field(
        2.0, description="size of the cell state's programme, in the same unit"
    )


class _NoiseSettings(Settings):
    """What else is in the numbers."""

    gene_sd: _Positive = Field(0.35, description="typical sd of a gene between wells, log2")
    nuisance: _NonNegative = Field(
        1.0, description="size of shared variation between wells, in noise sd"
    )
    nuisance_rank: int = Field(8, ge=0, description="directions of it")
    plate: _NonNegative = Field(
        1.0, description="shift of a plate, in noise sd; z-scores take most of it away"
    )
    position: _NonNegative = Field(
        0.6, description="gradients over rows and columns and the edge, in noise sd"
    )
    inferred: _NonNegative = Field(0.5, description="noise of inferred genes, in noise sd")


class ScreenSettings(Settings):
    """The whole simulated screen: its design, biology and noise, and how its files are written."""

    design: _DesignSettings = _DesignSettings()
    biology: _BiologySettings = _BiologySettings()
    noise: _NoiseSettings = _NoiseSettings()
    genes: int = Field(
        _LANDMARKS,
        ge=10,
        le=100_000,
        description="genes of the matrix; those beyond 978 are inferred",
    )
    shuffled_genes: bool = Field(
        False, description="landmarks scattered among the genes, as in newer builds"
    )
    names: Literal["geo", "lincs2020"] = Field(
        "geo", description="whose files and columns are written"
    )
    compression: int | None = Field(None, ge=0, le=9, description="gzip level of the matrix")

    @property
    def landmarks(self) -> int:
        """How many of the genes are landmarks."""
        return min(self.genes, _LANDMARKS)

    @property
    def plates(self) -> int:
        """How many plates there are."""
        design = self.design
        return design.maps * len(design.cell_lines) * len(design.hours) * design.replicates


_PRESETS: Final[dict[str, dict[str, Any]]] = {
    "tiny": {
        "design": {
            "compounds": 24,
            "cell_lines": ["A375", "MCF7"],
            "doses": [1.0, 10.0],
            "replicates": 2,
        },
        "biology": {"mechanisms": 6, "pathways": 12},
        "genes": 100,
    },
    "small": {},
    "nonlinear": {"biology": {"gated_share": 1.0}, "design": {"compounds": 200}},
    "genome": {"genes": 12_328, "shuffled_genes": True},
}


def screen_settings(
    preset: str = "small", *, config: str | Path | None = None, overrides: Sequence[str] = ()
) -> ScreenSettings:
    """The settings of a preset, then of a TOML file, then of ``a.b=value`` overrides."""
    if preset not in _PRESETS:
        raise ConfigError(
            f"there is no preset {preset!r}",
            expected=", ".join(_PRESETS),
            fix=suggest(preset, _PRESETS),
        )
    return ScreenSettings.load(config, overrides=overrides, base=_PRESETS[preset])
