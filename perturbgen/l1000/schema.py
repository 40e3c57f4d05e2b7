"""What CMap's files write, in one schema: ids, doses and times, and our columns for its tables.

Doses and times are numbers, '10 uM' or '24|24', with micro signs of three encodings; -666 is
missing.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from perturbgen.core.errors import shorten

# CMap's null, in fields of any type, with and without decimals.
MISSING: Final = -666
MISSING_TEXT: Final = re.compile(r"-666(\.0*)?")
log = logging.getLogger(__name__)


def decode(value: Any) -> str:
    """One id as text: UTF-8, else Latin-1 (``10 \\xb5M``); whole numbers without a point."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")
    # Entrez ids are stored as numbers in some files, and a float would end in .0
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


# 384 wells: rows A to P, columns 1 to 24.
_WELL: Final = re.compile(r"[A-P](0?[1-9]|1\d|2[0-4])")
# Of BRD-K56343971-001-02-3 the rest is salt and batch.
_BRD: Final = re.compile(r"BRD-[A-Z]\d{8}")


def level_of(ids: Iterable[str]) -> Literal["samples", "signatures", "unknown"]:
    """Whether ids name samples (levels 1 to 4) or signatures (level 5), by how most of them end."""
    sample = signature = 0
    for name in ids:
        head, colon, tail = name.partition(":")
        # a sample ends in its well, a signature in its perturbagen and dose
        if colon and _WELL.fullmatch(tail):
            sample += 1
        elif colon and ("_" in head or ":" in tail):
            signature += 1
    if max(sample, signature) == 0:
        return "unknown"
    return "samples" if sample >= signature else "signatures"


def core_id(pert_id: object) -> str | None:
    """The perturbagen behind an id: a BRD id without salt and batch, or the id itself."""
    if pert_id is None or pert_id != pert_id:
        return None
    text = str(pert_id).strip()
    match = _BRD.match(text.upper())
    return match.group() if match else text or None


_AMOUNT: Final = re.compile(r"\s*([+-]?[\d.]+(?:e[+-]?\d+)?)\s*(.*?)\s*", re.IGNORECASE)
# Two characters look like the sign; Â, \ufffd and <b5> are left of wrong decodings.
_MICRO: Final = re.compile("\u00c2?[\u00b5\u03bc\ufffd]|<b5>", re.IGNORECASE)
_MOLAR: Final = {"m": 1e6, "mm": 1e3, "um": 1.0, "nm": 1e-3, "pm": 1e-6}
_HOURS: Final = dict.fromkeys(("", "h", "hr", "hrs", "hour", "hours"), 1.0) | {
    "min": 1 / 60,
    "d": 24.0,
}


def _number(value: object) -> float:
    """A number, or NaN; of replicates joined by ``|`` the value that they share."""
    parts = {part.strip() for part in str(value).split("|")}
    try:
        found = float(parts.pop()) if len(parts) == 1 else math.nan
    except ValueError:
        return math.nan
    return math.nan if found == MISSING else found


def _clean_unit(unit: object) -> str | None:
    """A unit with a plain ``u`` for micro; None where it is missing."""
    if unit is None or unit != unit:
        return None
    text = _MICRO.sub("u", str(unit).split("|")[0].strip())
    return None if text in ("", "-666", "-666.0") else text


def _amount(value: object, unit: object, text: object) -> tuple[float, str | None]:
    """A quantity and its unit, from two columns or, where the number is missing, from one text."""
    found = _number(value)
    if math.isnan(found) and text is not None:
        match = _AMOUNT.fullmatch(_MICRO.sub("u", str(text)))
        written = _number(match[1]) if match else math.nan
        if match and not math.isnan(written):
            return written, _clean_unit(match[2])
    return found, _clean_unit(unit)


def _dose(number: object, unit_text: object, text: object) -> tuple[float, str | None]:
    """A dose in uM where its unit is molar; other units (ng, uL, ng/mL, %) stay as they are."""
    value, unit = _amount(number, unit_text, text)
    if unit is None or unit.lower() not in _MOLAR:
        return value, unit
    # ten digits: a dose is one number, whether a table gives it in nM or in uM
    return float(f"{value * _MOLAR[unit.lower()]:.10g}"), "uM"


def _hours(number: object, unit_text: object, text: object) -> tuple[float]:
    """A time in hours; an unknown unit gives NaN rather than a wrong number."""
    value, unit = _amount(number, unit_text, text)
    return (value * _HOURS.get((unit or "").lower(), math.nan),)


# What a perturbation type is. trt_sh.css, the consensus of hairpins that share a seed, estimates
# off-target effects: it is a control in spite of its prefix. Positive controls are treatments, but
# so many that they must not be a class.
_CODES: Final = {
    "treatment": "trt_cp trt_lig trt_sh trt_sh.cgs trt_oe trt_oe.mut trt_xpr trt_aby trt_misc",
    "positive control": "trt_poscon",
    "control": "ctl_vehicle ctl_vector ctl_untrt trt_sh.css ctl_vehicle.cns ctl_vector.cns "
    "ctl_untrt.cns",
}
_ROLES: Final = {code: role for role, codes in _CODES.items() for code in codes.split()}
# Our name -> the names that it has in GEO, in LINCS2020 and in older files, the best first.
_NAMES: Final[dict[str, tuple[str, ...]]] = {
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
# The columns of every table of samples, in this order; what a source lacks is missing.
COLUMNS: Final = (
    "perturbagen",
    "pert_id",
    "name",
    "pert_type",
    "role",
    "control",
    "cell_line",
    "dose",
    "dose_unit",
    "time",
    "plate",
    "well",
    "batch",
)
_OPTIONAL: Final = ("members", "tas", "cc_q75", "replicates", "quality", "moa", "target")


def _type_and_role(code: object) -> tuple[str | None, str | None]:
    """A perturbation type in lower case and what it is; an unknown one is told by its prefix."""
    if code is None:
        return None, None
    # old files write TRT_CP
    kind = str(code).strip().lower()
    return kind, _ROLES.get(kind, "control" if kind.startswith("ctl") else "treatment")


def unify(table: pd.DataFrame) -> pd.DataFrame:
    """A table of GEO, of LINCS2020 or of a GCTX file's own fields in our columns, its index kept.

    Doses are in uM where their unit is molar, times in hours; -666 is missing; ``perturbagen`` is
    the canonical id and ``control`` follows CMap's types, not their prefix.
    """
    found = {ours: _pick(table, theirs) for ours, theirs in _NAMES.items()}
    dose, unit = _distinct([found["dose"], found["dose_unit"], found["dose_text"]], _dose)
    time = _distinct([found["time"], found["time_unit"], found["time_text"]], _hours)[0]
    types, roles = (
        values.astype(object) for values in _distinct([found["pert_type"]], _type_and_role)
    )
    unknown = sorted({*types.dropna().unique()} - {*_ROLES})
    if unknown:
        log.warning("unknown perturbation types, told apart by their prefix: %s", shorten(unknown))
    # the name merges what ids tell apart, so it serves only where there are no ids
    named = found["pert_id"] if found["pert_id"].notna().any() else found["name"]
    out = found | {
        "perturbagen": _distinct([named], lambda name: (core_id(name),))[0],
        "pert_type": types,
        "role": roles,
        "control": roles.eq("control"),
        "dose": dose.astype(float),
        "dose_unit": unit,
        "time": time.astype(float),
    }
    extra = [name for name in _OPTIONAL if found[name].notna().any()]
    joined = pd.DataFrame({name: out[name] for name in (*COLUMNS, *extra)}, index=table.index)
    # a column of a million texts is large, its categories are few
    return joined.astype({name: "category" for name in joined if joined[name].dtype == object})


def _pick(table: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """The first of these columns that says anything, its gaps filled from the next."""
    found = [without_missing(table[name]) for name in names if name in table.columns]
    found = [values for values in found if values.notna().any()]
    if not found:
        return pd.Series(None, index=table.index, dtype=object)
    values = found[0]
    for other in found[1:]:
        if values.isna().any():
            values = values.astype(object).where(values.notna(), other.astype(object))
    return values


def without_missing(values: pd.Series) -> pd.Series:
    """A column with every spelling of -666 as missing; categories stay categories."""
    if pd.api.types.is_numeric_dtype(values):
        return values.where(values != MISSING)
    grouped = isinstance(values.dtype, pd.CategoricalDtype)
    known = values.cat.categories if grouped else values.unique()
    bad = [value for value in known if MISSING_TEXT.fullmatch(str(value).strip())]
    if not bad:
        return values
    return values.cat.remove_categories(bad) if grouped else values.where(~values.isin(bad))


def _distinct(
    columns: Sequence[pd.Series], function: Callable[..., tuple[Any, ...]]
) -> list[pd.Series]:
    """A function of several columns (None for missing), called once for every distinct row.

    What it gives is spread over all rows again: numbers as numbers, text as categories.
    """
    # a million samples have a few thousand distinct doses, times and ids
    key = np.zeros(len(columns[0]), np.int64)
    for values in columns:
        codes, known = pd.factorize(values, use_na_sentinel=True)
        # + 1: what is missing, coded as -1, is a value of its own
        key = key * (len(known) + 1) + codes + 1
    _, first, back = np.unique(key, return_index=True, return_inverse=True)
    firsts = [values.iloc[first].astype(object) for values in columns]
    rows = zip(*(values.where(values.notna(), None) for values in firsts), strict=True)
    spread = []
    for results in zip(*(function(*row) for row in rows), strict=True):
        numeric = all(isinstance(value, float) for value in results)
        distinct = np.array(results) if numeric else pd.Categorical(results)
        spread.append(pd.Series(distinct[back], index=columns[0].index))
    return spread
