"""Landmark extraction: one pass over matrices of any size to a memory map, tables, a manifest.

What is half done lies in ``OUT.part`` with a note of how far it came; the same call goes on there.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from perturbgen import __version__
from perturbgen.core.console import progress
from perturbgen.core.errors import InputError, SchemaError, shorten
from perturbgen.core.export import PARQUET, write_table
from perturbgen.core.files import disk_errors, only_writer, read_json, remove, require_writable
from perturbgen.core.system import keep_freed_memory
from perturbgen.l1000.gctx import BLOCK_BYTES, GctxFile, say_repeated
from perturbgen.l1000.growing import Growing
from perturbgen.l1000.metadata import describe_samples, join_rows, read_genes, read_metadata
from perturbgen.l1000.schema import level_of
from perturbgen.profiles import Profiles, read_profiles
from perturbgen.profiles.readers import MANIFEST, MATRIX

_log = logging.getLogger(__name__)

_FORMAT: Final = 1  # of the folder
# Ids that are text at the same time: a million sample ids are handled part by part.
_PART: Final = 1 << 16


@dataclass(frozen=True)
class _Source:
    """One matrix: which of its columns are wanted, what its ids name, and the ids."""

    file: GctxFile
    columns: np.ndarray
    level: str
    ids: pa.Array

    @classmethod
    def of(cls, file: GctxFile, columns: np.ndarray) -> _Source:
        """What is known of a file before its values are read."""
        ids = file.arrow_samples()
        return cls(file, columns, level_of(ids.slice(0, 1000).to_pylist()), ids)

    def to_json(self) -> dict[str, Any]:
        """What identifies the source, whatever folder it is in."""
        ids = hashlib.sha256()
        for start in range(0, len(self.ids), _PART):
            ids.update("\n".join(self.ids.slice(start, _PART).to_pylist()).encode() + b"\n")
        columns = hashlib.sha256(self.columns.astype(np.int64).tobytes()).hexdigest()
        return _mark(self.file.path) | {
            "samples": self.file.shape[0],
            "genes": self.file.shape[1],
            "level": self.level,
            "ids_sha256": ids.hexdigest(),
            "columns_sha256": columns,
        }


def _mark(path: Path) -> dict[str, Any]:
    """What tells a file from another of its name, and from itself before it was changed."""
    about = path.stat()
    # the time, too: values that were changed in place keep name and size
    return {"file": path.name, "bytes": about.st_size, "modified_ns": about.st_mtime_ns}


@dataclass(frozen=True)
class ExtractionOptions:
    """How values are written: type, limits (z-scores of raw plates reach 76), what NaN becomes."""

    dtype: Literal["float32", "float16"] = "float32"
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


@dataclass(frozen=True)
class _Work:
    """What is written; two calls with equal plans write equal folders."""

    sources: Sequence[_Source]
    genes: pd.DataFrame
    options: ExtractionOptions
    plan: dict[str, Any]


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
) -> Profiles:
    """Extract the landmarks (or other ``genes``) of matrices, joined by gene id, into ``out``.

    ``common_genes`` leaves out genes that a file lacks rather than refusing it; ``keep_unknown``
    keeps samples that no metadata table describes. An interrupted extraction goes on where it
    stopped.
    """
    out, options = Path(out), options or ExtractionOptions()
    require_writable(out)
    if not paths:
        raise InputError("no file to extract from", expected="one GCTX or GCT file at least")
    with ExitStack() as stack:
        files = [stack.enter_context(GctxFile(path, transposed=transposed)) for path in paths]
        wanted, columns = _match_genes(files, read_genes(genes), common_genes=common_genes)
        sources = [_Source.of(file, chosen) for file, chosen in zip(files, columns, strict=True)]
        _check_sources(sources)
        plan = {
            "format": _FORMAT,
            "sources": [source.to_json() for source in sources],
            "genes_sha256": hashlib.sha256("\n".join(wanted["gene_id"]).encode()).hexdigest(),
            "options": asdict(options),
            # a table that is not there is refused by its reader, which says what to give
            "metadata": [_mark(Path(path)) for path in metadata if Path(path).exists()],
            "keep_unknown": keep_unknown,
        }
        work = _Work(sources, wanted, options, plan)
        # before the metadata are joined: a finished extraction answers at once
        if not _finished(out, plan, force=force):
            samples = _collect(sources, metadata, keep_unknown=keep_unknown)
            part = _own_part(out)
            with only_writer(part), disk_errors(out):
                Growing.start_anew(part, plan)
                _copy(work, part, block_bytes)
                _finish(work, part, samples)
            with disk_errors(out):
                # the older folder goes only when all of the new one is written
                remove(out)
                part.replace(out)
    return read_profiles(out)


def _match_genes(
    files: Sequence[GctxFile], wanted: pd.DataFrame, *, common_genes: bool
) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """The genes that are written, and where each file has them."""
    columns = [_require_genes(file, wanted) for file in files]
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


def _require_genes(file: GctxFile, wanted: pd.DataFrame) -> np.ndarray:
    """Positions of the wanted genes, -1 where there is none; an error if the file has none."""
    found = file.find_genes(wanted)
    if (found >= 0).any():
        return found
    names = ("gene_id", "gene_symbol")
    as_samples = sum(file.samples.isin(wanted[name]).sum() for name in names)
    if as_samples:
        raise SchemaError(
            f"{file.path} has its genes where the samples belong: {as_samples:,} of the wanted "
            "genes are sample ids",
            expected="genes in /0/META/ROW, samples in /0/META/COL",
            cause="a file written from a transposed table",
            fix="--transposed, or GctxFile(path, transposed=True)",
        )
    raise SchemaError(
        f"{file.path} holds none of the {len(wanted):,} wanted genes; its ids are "
        f"{shorten(file.genes, 3)}",
        expected=f"ids such as {' or '.join(shorten(wanted[name], 3) for name in names)}",
        cause="ids of another kind (Ensembl, probes without a gene column), or another assay",
        fix="name the wanted genes as the file does: --genes FILE, one id a line",
    )


def _check_sources(sources: Sequence[_Source]) -> None:
    """Samples and signatures do not go into one matrix, nor does a sample go there twice."""
    if {"samples", "signatures"} <= {source.level for source in sources}:
        named = ", ".join(f"{source.file.path.name} holds {source.level}" for source in sources)
        raise SchemaError(
            f"the files are of different levels: {named}",
            expected="samples (levels 3 and 4) only, or signatures (level 5) only",
            fix="extract them into two folders",
        )
    # freezes of the same data must not be mixed
    for i, source in enumerate(sources):
        path, ids = source.file.path, source.ids
        if len(pc.unique(ids)) < len(ids):
            raise SchemaError(f"{path}: {say_repeated(ids, 'sample ids')}")
        for other in sources[i + 1 :]:
            both = ids.filter(pc.is_in(ids, value_set=other.ids))
            if len(both):
                raise SchemaError(
                    f"{len(both):,} samples are in {path} and in {other.file.path}: "
                    f"{shorten(both.to_pylist())}",
                    expected="every sample once",
                    cause="two freezes of the same data, or LINCS2020 beside the GEO series that "
                    "it contains",
                    fix="extract one of them",
                )


def _finished(out: Path, plan: dict[str, Any], *, force: bool) -> bool:
    """Whether this very extraction is there; another folder is only replaced with ``force``."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    manifest = out / MANIFEST
    found = read_json(manifest, "manifest") if manifest.is_file() else None
    if found is None:
        raise InputError(
            f"{out} exists and is no extraction",
            expected="a new folder",
            fix="choose another --out",
        )
    if force:
        return False
    if found.get("plan") != plan:
        raise InputError(
            f"{out} holds another extraction ({found.get('samples', 0):,} samples)",
            expected="a new folder, or the same files and options",
            cause="other files or options, or a file that was written anew since",
            fix="--force replaces it, or choose another --out",
        )
    _log.info("%s is this extraction already; nothing to do", out)
    return True


def _own_part(out: Path) -> Path:
    """The folder of unfinished work; one of that name that is not ours is never touched."""
    part = out.with_name(f"{out.name}.part")
    if part.exists() and not Growing.owns(part):
        raise InputError(
            f"{part} exists and is no unfinished extraction",
            expected="nothing of that name, which is where unfinished work lies",
            fix="rename it, or choose another --out",
        )
    return part


def _collect(
    sources: Sequence[_Source], metadata: Sequence[str | Path], *, keep_unknown: bool
) -> pd.DataFrame:
    """The samples of all files in one table, in the order of the matrix."""
    # before any value is read: metadata that lack a sample must not be found out after hours
    tables = [read_metadata(path) for path in metadata]
    parts = [
        describe_samples(source.file, source.ids, tables, keep_unknown=keep_unknown).assign(
            source=source.file.path.name
        )
        for source in sources
    ]
    samples = join_rows(parts) if len(parts) > 1 else parts[0].astype({"source": "category"})
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
    return samples.reset_index(drop=True)


def _copy(work: _Work, part: Path, block_bytes: int) -> None:
    """The pass over the values, from where an earlier one stopped."""
    # a block is written while the next one is read
    total = sum(source.file.shape[0] for source in work.sources)
    # glibc gives freed blocks back, and has every fresh one filled with zeros
    keep_freed_memory(2 * BLOCK_BYTES)
    with (
        Growing(part, (total, len(work.genes)), work.options.dtype, work.plan) as growing,
        # one thread keeps the order of rows; it ends before the file is closed, being entered last
        ThreadPoolExecutor(1) as writer,
    ):
        if growing.rows:
            _log.info("going on after %s of %s samples", f"{growing.rows:,}", f"{total:,}")
        with progress("extracting", total) as tick:
            tick(growing.rows)
            written: Future[None] | None = None
            # a block waits for the one before: two in memory, and a full disk ends the pass
            for values in _blocks(work.sources, growing.rows, block_bytes):
                ready = work.options.prepare(values)
                if written is not None:
                    written.result()
                written = writer.submit(growing.append, ready)
                tick(len(ready))
            if written is not None:
                written.result()


def _blocks(sources: Sequence[_Source], done: int, block_bytes: int) -> Iterator[np.ndarray]:
    """The wanted values (samples, genes) of all files after the first ``done`` samples."""
    for source in sources:
        samples = source.file.shape[0]
        rest = slice(min(done, samples), samples)
        done -= rest.start
        for block in source.file.slices(rest, block_bytes=block_bytes):
            yield source.file.values(block, source.columns)


def _finish(work: _Work, part: Path, samples: pd.DataFrame) -> None:
    """Write the tables and the manifest, and warn of what is odd."""
    wanted, (moments, norms) = work.genes, Growing.result(part)
    lacking, zeros = moments.missing > 0, int((norms == 0).sum())
    if lacking.any():
        names = wanted["gene_symbol"].where(wanted["gene_symbol"] != "", wanted["gene_id"])[lacking]
        _log.warning(
            "%d genes have missing values: %s (--fill 0 writes zeros)",
            lacking.sum(),
            shorten(names),
        )
    if zeros:
        _log.warning("%s profiles are all zeros: the column norm tells which", f"{zeros:,}")
    genes = wanted.assign(mean=moments.mean, sd=moments.sd, missing=moments.missing.astype(int))
    write_table(genes, part / "genes.parquet")
    # in Arrow: a million ids as Python text take much memory
    ids = pa.chunked_array([source.ids for source in work.sources])
    table = pa.Table.from_pandas(samples.assign(norm=norms), preserve_index=False)
    pq.write_table(table.add_column(0, "sample", ids), part / "samples.parquet", **PARQUET)
    types = samples["pert_type"].astype(object).fillna("unknown")
    manifest = {
        "perturbgen": __version__,
        "matrix": MATRIX,
        "samples": len(samples),
        "genes": len(wanted),
        "level": work.sources[0].level,
        "pert_types": types.value_counts().to_dict(),
        "controls": int(samples["control"].sum()),
        "missing_values": int(moments.missing.sum()),
        "genes_with_missing": int(lacking.sum()),
        "zero_profiles": zeros,
        "plan": work.plan,
    }
    (part / MANIFEST).write_text(json.dumps(manifest, indent=1))
    Growing.forget(part)
