"""CMap's metadata tables, of GEO or of LINCS2020, in one schema: codes, columns and our words."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from perturbgen.core.errors import InputError, SchemaError, shorten, suggest
from perturbgen.core.files import require_file
from perturbgen.l1000.fields import MISSING_TEXT, core_id, dose_of, hours_of, level_of

log = logging.getLogger(__name__)

_Role = Literal["treatment", "positive control", "control"]

# What a perturbation type is. trt_sh.css, the consensus of hairpins that share a seed, estimates
# off-target effects: it is a control in spite of its prefix. Positive controls are treatments, but
# so many that they must not be a class.
_ROLES: Final[dict[str, _Role]] = {
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
_SAMPLE_IDS: Final = ("inst_id", "sample_id", "distil_id_single", "cid", "id")
_SIGNATURE_IDS: Final = ("sig_id",)
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


def _clean_type(code: object) -> str | None:
    """A perturbation type as the table spells it: lower case, without blanks."""
    # old files write TRT_CP
    return None if code is None or code != code else str(code).strip().lower()


def _role_of(code: str | None) -> _Role | None:
    """What a perturbation type is, by the table; for an unknown code, by its prefix."""
    if code is None:
        return None
    if code in _ROLES:
        return _ROLES[code]
    return "control" if code.startswith("ctl") else "treatment"


def _warn_unknown(codes: Iterable[str | None]) -> None:
    """Say which perturbation types are in no table."""
    unknown = sorted({code for code in codes if code is not None and code not in _ROLES})
    if unknown:
        log.warning("unknown perturbation types, told apart by their prefix: %s", shorten(unknown))


def _roles(codes: pd.Series) -> pd.Series:
    """The role of every sample: treatment, positive control or control."""
    cleaned = {code: _clean_type(code) for code in codes.unique()}
    _warn_unknown(cleaned.values())
    return codes.map({code: _role_of(kind) for code, kind in cleaned.items()}).astype(object)


def _is_control(codes: pd.Series) -> pd.Series:
    """Whether every sample is a control, by CMap's perturbation types."""
    return _roles(codes).eq("control")


_Kind = Literal["samples", "signatures", "perturbagens"]
_NULLS: Final = ["-666", "-666.0", "-666.000000", ""]


def _read_table(path: str | Path) -> pd.DataFrame:
    """A tab-separated table, gzipped or not, with repeated text as categories."""
    return _read_arrow(path).to_pandas()


def _read_arrow(path: str | Path) -> pa.Table:
    """A tab-separated table: ids as text, the rest as dictionaries, so that a million rows fit."""
    path = require_file(path, "metadata table")
    try:
        try:
            table = _parse_arrow(path, "utf8")
        except pa.ArrowInvalid as error:
            # another encoding mends only a wrong encoding, not a broken table
            if "UTF8" not in str(error):
                raise
            table = _parse_arrow(path, "latin1")
    except (OSError, EOFError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{path} cannot be read as a tab-separated table: {error}",
            expected="a header, and as many tab-separated cells in every line",
            cause="a download that broke off, or a file of another kind",
        ) from error
    if table.num_rows == 0:
        raise InputError(f"{path} has a header but no rows", expected="at least one row")
    return table


def _parse_arrow(path: Path, encoding: str) -> pa.Table:
    """The table in one encoding."""
    with pa.input_stream(str(path), compression="detect") as probe:
        # whatever the encoding is: the names are ASCII, and Latin-1 reads every byte
        header = probe.read(1 << 16).split(b"\n")[0].decode("latin-1")
    names = [name.strip('"') for name in header.strip("\r\n\ufeff").split("\t")]
    plain, repeated = pa.string(), pa.dictionary(pa.int32(), pa.string())
    convert = pacsv.ConvertOptions(
        column_types={
            name: plain if name in (*_SAMPLE_IDS, *_SIGNATURE_IDS) else repeated for name in names
        },
        null_values=_NULLS,
        strings_can_be_null=True,
        # some tables quote every cell
        quoted_strings_can_be_null=True,
    )
    with pa.input_stream(str(path), compression="detect") as source:
        return pacsv.read_csv(
            source,
            read_options=pacsv.ReadOptions(encoding=encoding),
            parse_options=pacsv.ParseOptions(delimiter="\t"),
            convert_options=convert,
            # Arrow reads block by block, each with a dictionary of its own
        ).unify_dictionaries()


def _kind_of(
    columns: Sequence[str], first_ids: Callable[[str], list[str]], path: str | Path
) -> tuple[_Kind, str]:
    """What a table describes, and the column of its ids."""
    for name in _SIGNATURE_IDS:
        if name in columns:
            return "signatures", name
    for name in _SAMPLE_IDS:
        if name in columns:
            # such a column is in tables of either kind: its values tell which
            return ("signatures" if level_of(first_ids(name)) == "signatures" else "samples"), name
    if "pert_id" in columns:
        return "perturbagens", "pert_id"
    raise SchemaError(
        f"{path} has none of the id columns "
        f"{', '.join((*_SAMPLE_IDS, *_SIGNATURE_IDS, 'pert_id'))}",
        expected="inst_info, sig_info or pert_info of GEO, or instinfo, siginfo or compoundinfo of "
        "LINCS2020",
        cause=f"its columns are {shorten(columns, 8)}",
    )


def unify(table: pd.DataFrame) -> pd.DataFrame:
    """A table of GEO, of LINCS2020 or of a GCTX file's own fields in our columns, its index kept.

    Doses are in uM where their unit is molar, times in hours; -666 is missing; ``perturbagen`` is
    the canonical id and ``control`` follows CMap's types, not their prefix.
    """
    found = {ours: _pick(table, theirs) for ours, theirs in _NAMES.items()}
    dose = _distinct([found["dose"], found["dose_unit"], found["dose_text"]], dose_of)
    time = _distinct(
        [found["time"], found["time_unit"], found["time_text"]], lambda *row: (hours_of(*row),)
    )
    types = _distinct([found["pert_type"]], lambda code: (_clean_type(code),))[0].astype(object)
    # the name merges what ids tell apart, so it serves only where there are no ids
    named = found["pert_id"] if found["pert_id"].notna().any() else found["name"]
    out = found | {
        "perturbagen": _distinct([named], lambda name: (core_id(name),))[0],
        "pert_type": types,
        "role": _roles(types),
        "dose": dose[0].astype(float),
        "dose_unit": dose[1],
        "time": time[0].astype(float),
    }
    out["control"] = out["role"].eq("control")
    extra = {name: found[name] for name in _OPTIONAL if found[name].notna().any()}
    columns = {
        name: _compact(values)
        for name, values in ({name: out[name] for name in COLUMNS} | extra).items()
    }
    return pd.DataFrame(columns, index=table.index)


def _compact(values: pd.Series) -> pd.Series:
    """Text as categories, the rest as it is."""
    return values.astype("category") if values.dtype == object else values


def _pick(table: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """The first of these columns that says anything, its gaps filled from the next."""
    found = [_without_missing(table[name]) for name in names if name in table.columns]
    found = [values for values in found if values.notna().any()]
    if not found:
        return pd.Series(None, index=table.index, dtype=object)
    values = found[0]
    for other in found[1:]:
        if values.isna().any():
            values = values.astype(object).where(values.notna(), other.astype(object))
    return values


def _without_missing(values: pd.Series) -> pd.Series:
    """A column with every spelling of -666 as missing; categories stay categories."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        bad = [
            value for value in values.cat.categories if MISSING_TEXT.fullmatch(str(value).strip())
        ]
        return values.cat.remove_categories(bad) if bad else values
    if pd.api.types.is_numeric_dtype(values):
        return values.where(values != -666)
    return values.where(~values.map(lambda value: bool(MISSING_TEXT.fullmatch(str(value).strip()))))


def _distinct(
    columns: Sequence[pd.Series], function: Callable[..., tuple[Any, ...]]
) -> list[pd.Series]:
    """A function of several columns (None for missing), called once for every distinct row."""
    # a million samples have a few thousand distinct doses, times and ids
    key = np.zeros(len(columns[0]), np.int64)
    for values in columns:
        codes, known = pd.factorize(values, use_na_sentinel=True)
        # + 1: what is missing, coded as -1, is a value of its own
        key = key * (len(known) + 1) + codes + 1
    _, first, back = np.unique(key, return_index=True, return_inverse=True)
    rows = zip(
        *(
            values.iloc[first].astype(object).where(values.iloc[first].notna(), None)
            for values in columns
        ),
        strict=True,
    )
    results = [function(*row) for row in rows]
    return [
        _spread([result[i] for result in results], back, columns[0].index)
        for i in range(len(results[0]))
    ]


def _spread(values: list[Any], back: np.ndarray, index: pd.Index) -> pd.Series:
    """Distinct values over all rows: numbers as numbers, text as categories."""
    if all(isinstance(value, float) for value in values):
        return pd.Series(np.array(values)[back], index=index)
    return pd.Series(pd.Categorical(values).take(back), index=index)


@dataclass(frozen=True)
class MetadataTable:
    """A table of samples or signatures in our schema, its ids in Arrow's compact form."""

    path: Path
    kind: _Kind
    ids: pa.Array
    table: pd.DataFrame


def read_metadata(path: str | Path) -> MetadataTable:
    """A metadata file of GEO or LINCS2020, recognised by its columns; ids must be unique."""
    arrow = _read_arrow(path)
    kind, column = _kind_of(
        arrow.column_names, lambda name: arrow[name].slice(0, 1000).drop_null().to_pylist(), path
    )
    ids = arrow[column].combine_chunks()
    if kind == "perturbagens":
        raise SchemaError(
            f"{path} describes perturbagens, not samples",
            expected="a table with inst_id, sample_id or sig_id",
            fix="give inst_info (GEO) or instinfo_beta (LINCS2020)",
        )
    if len(pc.unique(ids)) < len(ids):
        counts = pc.value_counts(ids)
        twice = [row["values"].as_py() for row in counts if row["counts"].as_py() > 1]
        raise SchemaError(
            f"{path}: {len(twice):,} ids occur more than once: {shorten(twice)}",
            expected="unique ids",
        )
    return MetadataTable(Path(path), kind, ids, unify(arrow.drop_columns([column]).to_pandas()))


def perturbagen_values(path: str | Path, column: str) -> pd.Series:
    """A column of a table of perturbagens by canonical id; several values are ``a|b``."""
    table = _read_table(path)
    for name in ("pert_id", column):
        if name not in table:
            raise SchemaError(f"{path} has no column {name!r}", fix=suggest(name, table.columns))
    known = table[["pert_id"]].assign(value=_without_missing(table[column])).dropna().astype(str)
    known["pert_id"] = known["pert_id"].map(core_id)
    joined = known.groupby("pert_id")["value"].agg(lambda values: "|".join(sorted({*values})))
    return joined.rename(column).rename_axis("perturbagen")
