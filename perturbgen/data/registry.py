"""Public sources of data: what there is, and fetching it with checksums."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

from pydantic import Field

from perturbgen.config import Settings, file_hash, load_settings, read_toml
from perturbgen.data.download import ResumingDownloader
from perturbgen.errors import DownloadError, InputError, suggest
from perturbgen.files import atomic_path, disk_errors

logger = logging.getLogger(__name__)

CHECKSUMS: Final = "SHA256SUMS"


class Source(Settings):
    """A set of files at one place; ``sha256`` maps file names to checksums, as far as they are known."""

    title: str
    page: str
    licence: str
    size: str = "not stated"
    base: str = ""
    files: tuple[str, ...] = ()
    sha256: dict[str, str] = Field(default_factory=dict)
    note: str = ""


class Registry(Settings):
    """All sources by name."""

    sources: dict[str, Source]


def read_registry(path: str | Path | None = None) -> dict[str, Source]:
    """The sources this package knows, or those of another TOML file of the same form."""
    tables = read_toml(path or Path(__file__).with_name("sources.toml"))
    return load_settings(Registry, base={"sources": tables}).sources


def find_source(name: str, sources: dict[str, Source]) -> Source:
    """The source of this name."""
    if name not in sources:
        raise InputError(
            f"no source is called {name!r}: {suggest(name, sources)}",
            expected="a name of the registry",
            fix="perturbgen data list",
        )
    return sources[name]


def list_sources(sources: dict[str, Source]) -> list[dict[str, Any]]:
    """The registry as rows of a table."""
    return [
        {"name": name, "what": source.title, "size": source.size, "licence": source.licence, "page": source.page}
        for name, source in sources.items()
    ]


def fetch(source: Source, folder: str | Path) -> list[Path]:
    """Download the files of a source into ``folder`` and return their paths.

    An interrupted download goes on at the next call. A file whose checksum is not in the registry has it recorded in
    ``SHA256SUMS`` (the format of ``sha256sum -c``) when it first arrives, and is held to it from then on.
    """
    if not source.files:
        raise InputError(f"{source.title} cannot be fetched here", expected="a source with files", fix=source.note)
    folder = Path(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return [fetch_file(source, name, folder) for name in source.files]


def fetch_file(source: Source, name: str, folder: Path) -> Path:
    """One file, verified against the registry or against what was recorded when it first arrived."""
    import pooch

    recorded = read_checksums(folder)
    known = source.sha256.get(name) or recorded.get(name)
    pooch.get_logger().setLevel("ERROR")
    loader = ResumingDownloader(folder / f"{name}.part")
    logger.info("%s%s", source.base, name)
    try:
        pooch.retrieve(
            source.base + name, f"sha256:{known}" if known else None, fname=name, path=folder, downloader=loader
        )
    except ValueError:
        raise DownloadError(
            f"{source.base}{name} does not have the expected checksum",
            expected=f"sha256 {known}",
            cause="a corrupt download, or a new version at the source",
            fix=f"fetch again; for a new version first delete its line in {folder / CHECKSUMS}",
        ) from None
    if known is None:
        record_checksum(folder, name, recorded)
    return folder / name


def read_checksums(folder: Path) -> dict[str, str]:
    """File names and checksums recorded in a folder."""
    path = folder / CHECKSUMS
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def record_checksum(folder: Path, name: str, recorded: dict[str, str]) -> None:
    """Add a file's checksum to those recorded."""
    sums = recorded | {name: file_hash(folder / name).removeprefix("sha256:")}
    with atomic_path(folder / CHECKSUMS) as part:
        part.write_text("".join(f"{digest}  {file}\n" for file, digest in sums.items()))
