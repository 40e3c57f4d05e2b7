"""Landmark extraction: one pass over matrices of any size to a memory map, tables, a manifest.

What is half done lies in ``OUT.part`` with a note of how far it came; the same call goes on there.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from perturbgen import __version__
from perturbgen.core.console import progress
from perturbgen.core.errors import InputError, SchemaError, shorten
from perturbgen.core.files import disk_errors, read_json, remove, require_writable
from perturbgen.core.system import keep_freed_memory
from perturbgen.l1000.fields import level_of
from perturbgen.l1000.gctx import BLOCK_BYTES, GctxFile
from perturbgen.l1000.growing import Growing
from perturbgen.l1000.metadata import read_metadata
from perturbgen.l1000.profiles import MANIFEST, PROFILES, Extraction
from perturbgen.l1000.samples import describe_samples, join_rows, read_genes, require_genes

_log = logging.getLogger(__name__)


def _finish(
    part: Path,
    out: Path,
    samples: pd.DataFrame,
    sources: Sequence[_Source],
    wanted: pd.DataFrame,
    plan: dict[str, Any],
) -> None:
    """Write the tables and the manifest, warn of what is odd, and give the folder its name."""
    moments, norms = Growing.result(part)
    _report(wanted, moments.missing, norms)
    genes = wanted.assign(mean=moments.mean, sd=moments.sd, missing=moments.missing.astype(int))
    genes.to_parquet(part / "genes.parquet", index=False)
    _write_samples(
        samples.assign(norm=norms), pa.chunked_array([source.ids for source in sources]), part
    )
    manifest = {
        "perturbgen": __version__,
        "matrix": PROFILES,
        "samples": len(samples),
        "genes": len(wanted),
        "level": sources[0].level,
        "pert_types": samples["pert_type"]
        .astype(object)
        .fillna("unknown")
        .value_counts()
        .to_dict(),
        "controls": int(samples["control"].sum()),
        "missing_values": int(moments.missing.sum()),
        "genes_with_missing": int((moments.missing > 0).sum()),
        "zero_profiles": int((norms == 0).sum()),
        "plan": plan,
    }
    (part / MANIFEST).write_text(json.dumps(manifest, indent=1))
    Growing.forget(part)
    # the older folder goes only when all of the new one is written
    remove(out)
    part.replace(out)


def _report(wanted: pd.DataFrame, missing: np.ndarray, norms: np.ndarray) -> None:
    """Say which genes have missing values and how many profiles are nothing but zeros."""
    if (missing > 0).any():
        names = shorten(
            wanted["gene_symbol"].where(wanted["gene_symbol"] != "", wanted["gene_id"])[missing > 0]
        )
        _log.warning(
            "%d genes have missing values: %s (--fill 0 writes zeros)", (missing > 0).sum(), names
        )
    if (norms == 0).any():
        _log.warning(
            "%s profiles are all zeros: the column norm tells which", f"{(norms == 0).sum():,}"
        )


def _write_samples(samples: pd.DataFrame, ids: pa.ChunkedArray, part: Path) -> None:
    """The table of samples with their ids first."""
    import pyarrow.parquet as pq

    # in Arrow: a million ids as Python text take much memory
    table = pa.Table.from_pandas(samples, preserve_index=False)
    pq.write_table(table.add_column(0, "sample", ids), part / "samples.parquet")


_DType = Literal["float32", "float16"]
_FORMAT: Final = 1  # of the folder


# Ids that are text at the same time: a million sample ids are handled part by part.
_PART: Final = 1 << 16


@dataclass(frozen=True)
class _Source:
    """One matrix: its path, what marks the file, which of its columns are wanted, its ids."""

    path: Path
    shape: tuple[int, int]
    mark: dict[str, Any]
    level: str
    ids: pa.Array
    columns: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """What identifies the source, whatever folder it is in."""
        about = self.mark | {"samples": self.shape[0], "genes": self.shape[1]}
        columns = hashlib.sha256(self.columns.astype(np.int64).tobytes()).hexdigest()
        return about | {
            "level": self.level,
            "ids_sha256": _ids_hash(self.ids),
            "columns_sha256": columns,
        }


def _ids_hash(ids: pa.Array) -> str:
    """A fingerprint of ids in their order."""
    digest = hashlib.sha256()
    for start in range(0, len(ids), _PART):
        digest.update("\n".join(ids.slice(start, _PART).to_pylist()).encode() + b"\n")
    return digest.hexdigest()


@dataclass(frozen=True)
class ExtractionOptions:
    """How values are written: type, limits (z-scores of raw plates reach 76), what NaN becomes."""

    dtype: _DType = "float32"
    clip: float | None = None
    fill: float | None = None

    def prepare(self, values: np.ndarray) -> np.ndarray:
        """A block as it is written (samples, genes)."""
        limit = np.inf if self.clip is None else self.clip
        if self.dtype == "float16":
            # what is beyond it would become infinite in half precision
            limit = min(limit, float(np.finfo(np.float16).max))
        if np.isfinite(limit):
            values = np.clip(values, -limit, limit)
        if self.fill is not None and np.isnan(values).any():
            values = np.where(np.isnan(values), np.float32(self.fill), values)
        return values


def extract(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    metadata: Sequence[str | Path] = (),
    genes: str | Path | None = None,
    options: ExtractionOptions | None = None,
    common_genes: bool = False,
    keep_unknown: bool = False,
    transposed: bool = False,
    force: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> Extraction:
    """Extract the landmarks (or other ``genes``) of matrices, joined by gene id, into ``out``.

    ``common_genes`` leaves out genes that a file lacks rather than refusing it; ``keep_unknown``
    keeps samples that no metadata table describes. An interrupted extraction goes on where it
    stopped.
    """
    out, options = Path(out), options or ExtractionOptions()
    require_writable(out)
    with _opened(paths, transposed=transposed) as files:
        wanted, columns = _match_genes(files, read_genes(genes), common_genes=common_genes)
        sources = [_source(file, chosen) for file, chosen in zip(files, columns, strict=True)]
        _check_levels(sources)
        plan = _make_plan(sources, wanted, options, metadata, keep_unknown=keep_unknown)
        # before the metadata are joined: a finished extraction answers at once
        if _finished(out, plan, force=force):
            return Extraction.open(out)
        samples = _collect(files, sources, metadata, keep_unknown=keep_unknown)
        part = _prepare_part(out, plan)
        with disk_errors(out):
            _copy(files, sources, part, wanted, options, plan, block_bytes)
            _finish(part, out, samples, sources, wanted, plan)
    return Extraction.open(out)


@contextmanager
def _opened(paths: Sequence[str | Path], *, transposed: bool) -> Iterator[list[GctxFile]]:
    """Several files, closed together."""
    if not paths:
        raise InputError("no file to extract from", expected="one GCTX or GCT file at least")
    with ExitStack() as stack:
        yield [stack.enter_context(GctxFile(path, transposed=transposed)) for path in paths]


def _match_genes(
    files: Sequence[GctxFile], wanted: pd.DataFrame, *, common_genes: bool
) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """The genes that are written, and where each file has them."""
    columns = [require_genes(file, wanted) for file in files]
    everywhere = np.all([found >= 0 for found in columns], axis=0)
    if not everywhere.all() and not common_genes:
        lines = [
            f"{file.path.name} lacks {(found < 0).sum():,} "
            f"({shorten(wanted['gene_id'][found < 0])})"
            for file, found in zip(files, columns, strict=True)
            if (found < 0).any()
        ]
        raise SchemaError(
            f"not every file has all {len(wanted):,} wanted genes: {'; '.join(lines)}",
            expected="the same genes in every file, in any order",
            cause="another probe set, or retired gene ids",
            fix="take the genes that all files have: --common-genes",
        )
    if not everywhere.all():
        _log.warning(
            "%d of %d genes are left out: not every file has them", (~everywhere).sum(), len(wanted)
        )
    if not everywhere.any():
        raise SchemaError(
            "the files have no wanted gene in common", expected="files of the same assay"
        )
    return wanted[everywhere].reset_index(drop=True), [found[everywhere] for found in columns]


def _source(file: GctxFile, columns: np.ndarray) -> _Source:
    """What is known of a file before its values are read."""
    ids = file.arrow_samples()
    level = level_of(ids.slice(0, 1000).to_pylist())
    return _Source(file.path, file.shape, _mark(file.path), level, ids, columns)


def _mark(path: Path) -> dict[str, Any]:
    """What tells a file from another of its name, and from itself before it was changed."""
    about = path.stat()
    # the time, too: values that were changed in place keep name and size
    return {"file": path.name, "bytes": about.st_size, "modified_ns": about.st_mtime_ns}


def _check_levels(sources: Sequence[_Source]) -> None:
    """Samples and signatures do not go into one matrix."""
    if {"samples", "signatures"} <= {source.level for source in sources}:
        named = ", ".join(f"{source.path.name} holds {source.level}" for source in sources)
        raise SchemaError(
            f"the files are of different levels: {named}",
            expected="samples (levels 3 and 4) only, or signatures (level 5) only",
            fix="extract them into two folders",
        )
    _check_unique([source.ids for source in sources], [source.path for source in sources])


def _check_unique(ids: Sequence[pa.Array], paths: Sequence[Path]) -> None:
    """No sample is in two files: freezes of the same data must not be mixed."""
    for i, (first, path) in enumerate(zip(ids, paths, strict=True)):
        if len(pc.unique(first)) < len(first):
            twice = [
                row["values"].as_py() for row in pc.value_counts(first) if row["counts"].as_py() > 1
            ]
            raise SchemaError(
                f"{path}: {len(twice):,} sample ids occur more than once: {shorten(twice)}"
            )
        for second, other in zip(ids[i + 1 :], paths[i + 1 :], strict=True):
            both = first.filter(pc.is_in(first, value_set=second))
            if len(both):
                raise SchemaError(
                    f"{len(both):,} samples are in {path} and in {other}: "
                    f"{shorten(both.to_pylist())}",
                    expected="every sample once",
                    cause="two freezes of the same data, or LINCS2020 beside the GEO series that "
                    "it contains",
                    fix="extract one of them",
                )


def _make_plan(
    sources: Sequence[_Source],
    wanted: pd.DataFrame,
    options: ExtractionOptions,
    metadata: Sequence[str | Path],
    *,
    keep_unknown: bool,
) -> dict[str, Any]:
    """All that decides what is written: two calls with equal plans write equal folders."""
    genes = hashlib.sha256("\n".join(wanted["gene_id"]).encode()).hexdigest()
    # a table that is not there is refused by its reader, which says what to give
    tables = [_mark(Path(path)) for path in metadata if Path(path).exists()]
    return {
        "format": _FORMAT,
        "sources": [source.to_json() for source in sources],
        "genes_sha256": genes,
        "options": asdict(options),
        "metadata": tables,
        "keep_unknown": keep_unknown,
    }


def _finished(out: Path, plan: dict[str, Any], *, force: bool) -> bool:
    """Whether this very extraction is there; another folder is only replaced with ``force``."""
    if not out.exists():
        return False
    manifest = out / MANIFEST
    found = read_json(manifest, "manifest") if manifest.is_file() else None
    if found is None:
        if out.is_dir() and not any(out.iterdir()):
            return False
        raise InputError(
            f"{out} exists and is no extraction",
            expected="a new folder",
            fix="choose another --out",
        )
    if found.get("plan") == plan and not force:
        _log.info("%s is this extraction already; nothing to do", out)
        return True
    if not force:
        raise InputError(
            f"{out} holds another extraction ({found.get('samples', 0):,} samples)",
            expected="a new folder, or the same files and options",
            cause="other files or options, or a file that was written anew since",
            fix="--force replaces it, or choose another --out",
        )
    return False


def _prepare_part(out: Path, plan: dict[str, Any]) -> Path:
    """The folder of unfinished work, emptied if it is of other inputs."""
    part = out.with_name(f"{out.name}.part")
    if part.is_dir() and Growing.plan_of(part) not in (None, plan):
        _log.warning("%s holds unfinished work on other files or options; starting anew", part)
        remove(part)
    with disk_errors(part):
        part.mkdir(parents=True, exist_ok=True)
    return part


def _collect(
    files: Sequence[GctxFile],
    sources: Sequence[_Source],
    metadata: Sequence[str | Path],
    *,
    keep_unknown: bool,
) -> pd.DataFrame:
    """The samples of all files in one table, in the order of the matrix."""
    # before any value is read: metadata that lack a sample must not be found out after hours
    tables = [read_metadata(path) for path in metadata]
    parts = [
        describe_samples(file, source.ids, tables, keep_unknown=keep_unknown).assign(
            source=source.path.name
        )
        for file, source in zip(files, sources, strict=True)
    ]
    samples = join_rows(parts) if len(parts) > 1 else parts[0].astype({"source": "category"})
    _check_controls(samples)
    return samples.reset_index(drop=True)


def _check_controls(samples: pd.DataFrame) -> None:
    """Say what is odd about controls: none at all, or positive controls, a class of their own."""
    if samples["role"].isna().all():
        _log.warning("no perturbation types are known, so no control is flagged")
    elif not samples["control"].any():
        _log.warning("no control among %s samples", f"{len(samples):,}")
    positive = (samples["role"] == "positive control").mean()
    if positive > 0:
        _log.info(
            "%.1f %% of the samples are positive controls: leave them out of the classes",
            100 * positive,
        )


def _copy(
    files: Sequence[GctxFile],
    sources: Sequence[_Source],
    part: Path,
    wanted: pd.DataFrame,
    options: ExtractionOptions,
    plan: dict[str, Any],
    block_bytes: int,
) -> None:
    """The pass over the values, from where an earlier one stopped."""
    # a block is written while the next one is read
    total = sum(source.shape[0] for source in sources)
    # glibc gives freed blocks back, and has every fresh one filled with zeros
    keep_freed_memory(2 * BLOCK_BYTES)
    with (
        Growing(part, (total, len(wanted)), options.dtype, plan) as growing,
        # one thread keeps the order of rows; it ends before the file is closed, being entered last
        ThreadPoolExecutor(1) as writer,
    ):
        if growing.rows:
            _log.info("going on after %s of %s samples", f"{growing.rows:,}", f"{total:,}")
        with progress("extracting", total) as tick:
            tick(growing.rows)
            written: Future[None] | None = None
            # a block waits for the one before: two in memory, and a full disk ends the pass
            for values in _blocks(files, sources, growing.rows, block_bytes):
                ready = options.prepare(values)
                if written is not None:
                    written.result()
                written = writer.submit(growing.append, ready)
                tick(len(ready))
            if written is not None:
                written.result()


def _blocks(
    files: Sequence[GctxFile], sources: Sequence[_Source], done: int, block_bytes: int
) -> Iterator[np.ndarray]:
    """The wanted values (samples, genes) of all files after the first ``done`` samples."""
    for file, about in zip(files, sources, strict=True):
        rest = slice(min(done, about.shape[0]), about.shape[0])
        done -= rest.start
        for block in file.slices(rest, block_bytes=block_bytes):
            yield file.values(block, about.columns)
