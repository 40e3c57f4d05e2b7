"""CMap's codes and column names, of GEO and of LINCS2020, and the words that we use for both."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final, Literal

import pandas as pd

from perturbgen.errors import shorten

log = logging.getLogger(__name__)

Role = Literal["treatment", "positive control", "control"]

# What a perturbation type is. trt_sh.css, the consensus of hairpins that share a seed, estimates off-target effects: it
# is a control in spite of its prefix. Positive controls are treatments, but so many that they must not be a class.
ROLES: Final[dict[str, Role]] = {
    "trt_cp": "treatment",
    "trt_lig": "treatment",
    "trt_sh": "treatment",
    "trt_sh.cgs": "treatment",
    "trt_oe": "treatment",
    "trt_oe.mut": "treatment",
    "trt_xpr": "treatment",
    "trt_aby": "treatment",
    "trt_misc": "treatment",
    "trt_poscon": "positive control",
    "ctl_vehicle": "control",
    "ctl_vector": "control",
    "ctl_untrt": "control",
    "trt_sh.css": "control",
    "ctl_vehicle.cns": "control",
    "ctl_vector.cns": "control",
    "ctl_untrt.cns": "control",
}

# Our name -> the names that it has in GEO, in LINCS2020 and in older files, the best first.
SAMPLE_IDS: Final = ("inst_id", "sample_id", "distil_id_single", "cid", "id")
SIGNATURE_IDS: Final = ("sig_id",)
NAMES: Final[dict[str, tuple[str, ...]]] = {
    "pert_id": ("pert_id",),
    "name": ("pert_iname", "cmap_name"),
    "pert_type": ("pert_type", "sm_pert_type"),
    "cell_line": ("cell_id", "cell_iname", "cell_mfc_name"),
    "dose": ("pert_dose",),
    "dose_unit": ("pert_dose_unit",),
    "dose_text": ("pert_idose",),
    "time": ("pert_time",),
    "time_unit": ("pert_time_unit",),
    "time_text": ("pert_itime",),
    "plate": ("rna_plate", "det_plate"),
    "well": ("rna_well", "det_well"),
    "batch": ("bead_batch",),
    "members": ("distil_ids", "distil_id"),
    "tas": ("tas", "distil_tas"),
    "cc_q75": ("cc_q75", "distil_cc_q75"),
    "replicates": ("nsample", "distil_nsample"),
    "quality": ("qc_pass",),
    "moa": ("moa",),
    "target": ("gene_targets", "target"),
}
GENE_IDS: Final = ("pr_gene_id", "gene_id", "pr_gene_symbol", "gene_symbol")

# The columns of every table of samples, in this order; what a source lacks is missing.
COLUMNS: Final = (
    "perturbagen", "pert_id", "name", "pert_type", "role", "control", "cell_line", "dose", "dose_unit", "time", "plate",
    "well", "batch",
)  # fmt: skip
OPTIONAL: Final = ("members", "tas", "cc_q75", "replicates", "quality", "moa", "target")


def clean_type(code: object) -> str | None:
    """A perturbation type as the table spells it: lower case, without blanks."""
    return None if code is None or code != code else str(code).strip().lower()


def role_of(code: str | None) -> Role | None:
    """What a perturbation type is, by the table; for an unknown code, by its prefix."""
    if code is None:
        return None
    if code in ROLES:
        return ROLES[code]
    return "control" if code.startswith("ctl") else "treatment"


def warn_unknown(codes: Iterable[str | None]) -> None:
    """Say which perturbation types are in no table."""
    unknown = sorted({code for code in codes if code is not None and code not in ROLES})
    if unknown:
        log.warning("unknown perturbation types, told apart by their prefix: %s", shorten(unknown))


def roles(codes: pd.Series) -> pd.Series:
    """The role of every sample: treatment, positive control or control."""
    cleaned = {code: clean_type(code) for code in codes.unique()}
    warn_unknown(cleaned.values())
    return codes.map({code: role_of(kind) for code, kind in cleaned.items()}).astype(object)


def is_control(codes: pd.Series) -> pd.Series:
    """Whether every sample is a control, by CMap's perturbation types."""
    return roles(codes).eq("control")
