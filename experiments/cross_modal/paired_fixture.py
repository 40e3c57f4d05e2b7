"""Images and L1000 of made-up compounds that share part of what they show: a planted truth for
every claim.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from pairs import Columns

from perturbgen.core.files import atomic_path
from perturbgen.core.tables import read_frame

_Array = np.ndarray[Any, Any]
SHARED: Final = 6  # dimensions that both assays see
_PRIVATE: Final = 8  # that one assay sees
_DOSES: Final = {0.3333: 0.35, 1.1111: 0.7, 3.3333: 1.0}  # uM: strength of the effect
# which respond in which assay
_GROUPS: Final = {"both": 0.5, "images": 0.15, "L1000": 0.15, "neither": 0.2}
_REPLICATES: Final = 3  # each on a plate of its own
_VEHICLES: Final = 16  # wells of a plate
_FAMILY: Final = 6  # compounds of a mechanism
IMAGES: Final = Columns(
    "Metadata_broad_sample",
    "Metadata_mmoles_per_liter",
    "Metadata_Plate",
    "Metadata_moa",
    "Metadata_broad_sample=DMSO",
)
L1000: Final = Columns("pert_id", "pert_dose", "det_plate", "", "pert_type=ctl_vehicle", "_at$")


@dataclass(frozen=True)
class _Truth:
    """Who responds where, and the maps (features, shared) of averaged profiles to what both assays
    see.
    """

    groups: pd.Series  # compound -> a name of GROUPS
    images: _Array
    l1000: _Array


@dataclass(frozen=True)
class _Assay:
    """How one assay sees the shared and its own dimensions (dimensions, features)."""

    shared: _Array
    private: _Array

    def best_map(self) -> _Array:
        """(features, shared): the posterior mean of the shared dimensions of an averaged profile at
        the full dose.
        """
        inverse = np.linalg.inv(
            self.private.T @ self.private + np.eye(self.shared.shape[1]) / _REPLICATES
        )
        precision = self.shared @ inverse @ self.shared.T + np.eye(SHARED)
        return np.asarray(inverse @ self.shared.T @ np.linalg.inv(precision))


def write_paired(root: str | Path, *, seed: int = 0, compounds: int = 150) -> Path:
    """A folder with ``images.csv.gz``, ``l1000.csv.gz``, whose columns are IMAGES and L1000, and
    the truth.

    A compound's shared part is its mechanism's plus its own; plates move and stretch every feature.
    """
    rng = np.random.default_rng(seed)
    names = [f"BRD-K{i:08d}" for i in range(compounds)]
    family = np.arange(compounds) // _FAMILY
    centre = rng.normal(size=(family[-1] + 1, SHARED))
    shared = 0.8 * centre[family] + 0.6 * rng.normal(size=(compounds, SHARED))
    groups = rng.permutation(np.repeat(list(_GROUPS), _compounds_in_groups(compounds)))
    assays = {"images": _draw_assay(120, rng), "L1000": _draw_assay(160, rng)}
    with atomic_path(root) as part:
        part.mkdir()
        for name, assay in assays.items():
            active = np.isin(groups, ["both", name])[:, None]
            effect = (
                shared @ assay.shared + rng.normal(size=(compounds, _PRIVATE)) @ assay.private
            ) * active
            wells = _plates(effect, names, family, rng)
            table = _image_table(wells) if name == "images" else _l1000_table(wells)
            table.to_csv(part / f"{name.lower()}.csv.gz", index=False, float_format="%.5g")
        pd.DataFrame({"compound": names, "group": groups}).to_csv(part / "truth.csv", index=False)
        np.savez(
            part / "truth.npz", images=assays["images"].best_map(), L1000=assays["L1000"].best_map()
        )
    return Path(root)


def read_truth(root: str | Path) -> _Truth:
    """What :func:`write_paired` planted."""
    table = read_frame(Path(root) / "truth.csv", text=("compound",)).set_index("compound")
    maps = np.load(Path(root) / "truth.npz")
    return _Truth(table["group"], maps["images"], maps["L1000"])


def _compounds_in_groups(compounds: int) -> list[int]:
    """Sizes of GROUPS; what is left after rounding responds in neither assay."""
    sizes = [int(share * compounds) for share in _GROUPS.values()]
    return [*sizes[:-1], compounds - sum(sizes[:-1])]


def _draw_assay(features: int, rng: np.random.Generator) -> _Assay:
    """Loadings; the shared dimensions are seen less and less clearly."""
    strength = np.linspace(1.5, 0.5, SHARED)[:, None] * 0.25
    return _Assay(
        strength * rng.normal(size=(SHARED, features)), 0.25 * rng.normal(size=(_PRIVATE, features))
    )


def _plates(
    effect: _Array, names: list[str], family: _Array, rng: np.random.Generator
) -> pd.DataFrame:
    """Every perturbation once on each plate beside vehicle wells; values (wells, features) after
    the labels.
    """
    parts = []
    for plate in range(_REPLICATES):
        doses = np.array(list(_DOSES))
        treated = pd.DataFrame(
            {
                "compound": np.repeat(names, len(doses)),
                "dose": np.tile(doses, len(names)),
                "moa": np.repeat([f"mechanism {f}" for f in family], len(doses)),
            }
        )
        vehicle = pd.DataFrame({"compound": ["DMSO"] * _VEHICLES, "dose": 0.0, "moa": None})
        labels = pd.concat([treated, vehicle], ignore_index=True)
        mean = np.vstack(
            [
                (effect[:, None] * np.array(list(_DOSES.values()))[:, None]).reshape(
                    -1, effect.shape[1]
                ),
                np.zeros((_VEHICLES, effect.shape[1])),
            ]
        )
        values = mean + rng.normal(size=mean.shape)
        values = values * np.exp(0.2 * rng.normal(size=mean.shape[1])) + rng.normal(
            size=mean.shape[1]
        )
        labels["plate"], labels["well"] = f"P{plate + 1}", [_well(i) for i in range(len(labels))]
        parts.append(
            pd.concat([labels, pd.DataFrame(values)], axis=1).sample(frac=1, random_state=plate)
        )
    return pd.concat(parts, ignore_index=True)


def _well(number: int) -> str:
    """A name on a plate of 24 columns."""
    return f"{chr(65 + number // 24)}{number % 24 + 1:02d}"


def _image_table(wells: pd.DataFrame) -> pd.DataFrame:
    """As pycytominer writes it."""
    labels = {
        "Metadata_Plate": wells["plate"],
        "Metadata_Well": wells["well"],
        IMAGES.label: wells["compound"],
        IMAGES.dose: wells["dose"],
        IMAGES.moa: wells["moa"],
    }
    values = wells[[name for name in wells if isinstance(name, int)]]
    return pd.concat(
        [pd.DataFrame(labels), values.rename(columns=lambda i: f"Cells_Feature_{i}")], axis=1
    )


def _l1000_table(wells: pd.DataFrame) -> pd.DataFrame:
    """As the published replicate-level tables: other rounding, probe names, no mechanism."""
    vehicle = wells["compound"] == "DMSO"
    labels = {
        "pert_id": wells["compound"],
        "pert_dose": wells["dose"].round(2).where(~vehicle, -666.0),
        "pert_type": np.where(vehicle, "ctl_vehicle", "trt_cp"),
        "det_plate": wells["plate"],
        "det_well": wells["well"],
        "x_bead_count": 20 + np.arange(len(wells)) % 7,
    }
    values = wells[[name for name in wells if isinstance(name, int)]]
    return pd.concat(
        [pd.DataFrame(labels), values.rename(columns=lambda i: f"{200000 + i}_at")], axis=1
    )
