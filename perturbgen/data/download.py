"""Downloads over HTTP that go on where they stopped.

Public sources of data: what there is, and fetching it with checksums.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from perturbgen.core.config import Settings, load_settings, read_toml
from perturbgen.core.console import Tick, progress
from perturbgen.core.errors import DownloadError, InputError, StorageError, suggest
from perturbgen.core.files import atomic_path, disk_errors
from perturbgen.core.runs import file_hash

if TYPE_CHECKING:
    from requests import Response

_logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
_TIMEOUT = 60
_AGAIN = "run the same command again; it goes on from where it stopped"


@dataclass(frozen=True)
class _ResumingDownloader:
    """What pooch calls to fetch a file; the unfinished part stays in ``part`` when the connection breaks."""

    part: Path

    def __call__(
        self, url: str, output_file: Any, pooch: Any, check_only: bool = False
    ) -> bool | None:
        """Fetch ``url`` to ``part``, then give it the name that pooch checks."""
        with disk_errors(self.part):
            _download(url, self.part)
            self.part.replace(output_file)
            _tag_path(self.part).unlink(missing_ok=True)
        return None


def _download(url: str, part: Path) -> None:
    """Fetch ``url`` into ``part``, going on from its end if it is there and the server still has the same file."""
    import requests

    try:
        with requests.get(
            url, headers=_resume_headers(part), stream=True, timeout=_TIMEOUT
        ) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                _finish_or_discard(url, response, part)
                return
            _require_success(url, response)
            _save(response, part)
    except requests.RequestException as error:
        raise DownloadError(
            f"{url}: {_first_words(error)}", expected="an answer from the server", fix=_AGAIN
        ) from None


def _first_words(error: Exception) -> str:
    """The innermost reason of a connection error, in a line."""
    reason: BaseException = error
    while reason.__context__ is not None:
        reason = reason.__context__
    return (str(reason).strip() or type(error).__name__).splitlines()[0]


def _resume_headers(part: Path) -> dict[str, str]:
    """Ask for the rest of a file, provided it is still the one that was begun; compression would break the count."""
    headers = {"Accept-Encoding": "identity"}
    tag = _tag_path(part)
    if part.exists() and part.stat().st_size and tag.exists():
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": tag.read_text()}
    return headers


def _tag_path(part: Path) -> Path:
    """Where the server's tag of an unfinished file is kept."""
    return part.with_name(part.name + ".tag")


def _require_success(url: str, response: Response) -> None:
    """The server has the file."""
    if response.status_code not in (200, 206):
        gone = response.status_code in (404, 410)
        raise DownloadError(
            f"{url}: the server answered {response.status_code} {response.reason}",
            expected="the file",
            cause="the source has moved or renamed it"
            if gone
            else "the server is busy, or access needs a login",
            fix="see the source's page: perturbgen data list" if gone else _AGAIN,
        )


def _finish_or_discard(url: str, response: Response, part: Path) -> None:
    """No bytes are left to send: the part is whole, or it belongs to another file and is fetched anew."""
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    if total != str(part.stat().st_size):
        part.unlink()
        _download(url, part)


def _save(response: Response, part: Path) -> None:
    """Write the body to ``part``: after what is there for a partial answer, else from the start."""
    resumed = response.status_code == 206
    have = part.stat().st_size if resumed else 0
    length = response.headers.get("Content-Length")
    total = have + int(length) if length else None
    _require_space(part, int(length or 0))
    _remember_tag(response, part)
    if resumed:
        _logger.info("%s: going on from byte %s", part.name, f"{have:,}")
    with (
        open(part, "ab" if resumed else "wb") as handle,
        progress(f"{part.stem} (MB)", round(total / 1e6) if total else None) as tick,
    ):
        tick(have / 1e6)
        _copy(response, handle, tick)
    _require_whole(response.url, part, total)


def _copy(response: Response, handle: Any, tick: Tick) -> None:
    """Copy the body as it arrives; a connection that breaks ends it (the size is compared afterwards)."""
    from urllib3.exceptions import HTTPError

    try:
        while chunk := response.raw.read(_CHUNK):
            handle.write(chunk)
            tick(len(chunk) / 1e6)
    except HTTPError as error:
        _logger.debug("connection broke: %s", error)


def _require_whole(url: str, part: Path, total: int | None) -> None:
    """All bytes that the server announced have arrived."""
    have = part.stat().st_size
    if total is not None and have != total:
        raise DownloadError(
            f"{url}: the connection broke off after {have:,} of {total:,} bytes",
            expected="the whole file",
            cause="an unstable network or a busy server",
            fix=_AGAIN,
        )


def _require_space(part: Path, wanted: int) -> None:
    """The disk can hold what is still to come."""
    free = shutil.disk_usage(part.parent).free
    if wanted > free:
        raise StorageError(
            f"{part.parent} has {free / 1e9:.1f} GB free and {wanted / 1e9:.1f} GB are to come",
            fix="free some space or choose another --out",
        )


def _remember_tag(response: Response, part: Path) -> None:
    """Keep the server's tag of the file, by which a later request knows that it is still the same."""
    tag = response.headers.get("ETag", "")
    tag = response.headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag
    if tag:
        _tag_path(part).write_text(tag)
    else:
        _tag_path(part).unlink(missing_ok=True)


CHECKSUMS: Final = "SHA256SUMS"


class _Source(Settings):
    """A set of files at one place; ``sha256`` maps file names to checksums, as far as they are known."""

    title: str
    page: str
    licence: str
    size: str = "not stated"
    base: str = ""
    files: tuple[str, ...] = ()
    sha256: dict[str, str] = Field(default_factory=dict)
    note: str = ""


class _Registry(Settings):
    """All sources by name."""

    sources: dict[str, _Source]


def read_registry(path: str | Path | None = None) -> dict[str, _Source]:
    """The sources this package knows, or those of another TOML file of the same form."""
    tables = read_toml(path or Path(__file__).with_name("sources.toml"))
    return load_settings(_Registry, base={"sources": tables}).sources


def find_source(name: str, sources: dict[str, _Source]) -> _Source:
    """The source of this name."""
    if name not in sources:
        raise InputError(
            f"no source is called {name!r}: {suggest(name, sources)}",
            expected="a name of the registry",
            fix="perturbgen data list",
        )
    return sources[name]


def list_sources(sources: dict[str, _Source]) -> list[dict[str, Any]]:
    """The registry as rows of a table."""
    return [
        {
            "name": name,
            "what": source.title,
            "size": source.size,
            "licence": source.licence,
            "page": source.page,
        }
        for name, source in sources.items()
    ]


def fetch(source: _Source, folder: str | Path) -> list[Path]:
    """Download the files of a source into ``folder`` and return their paths.

    An interrupted download goes on at the next call. A file whose checksum is not in the registry has it recorded in
    ``SHA256SUMS`` (the format of ``sha256sum -c``) when it first arrives, and is held to it from then on.
    """
    if not source.files:
        raise InputError(
            f"{source.title} cannot be fetched here",
            expected="a source with files",
            fix=source.note,
        )
    folder = Path(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return [_fetch_file(source, name, folder) for name in source.files]


def _fetch_file(source: _Source, name: str, folder: Path) -> Path:
    """One file, verified against the registry or against what was recorded when it first arrived."""
    import pooch

    recorded = read_checksums(folder)
    known = source.sha256.get(name) or recorded.get(name)
    pooch.get_logger().setLevel("ERROR")
    loader = _ResumingDownloader(folder / f"{name}.part")
    _logger.info("%s%s", source.base, name)
    try:
        pooch.retrieve(
            source.base + name,
            f"sha256:{known}" if known else None,
            fname=name,
            path=folder,
            downloader=loader,
        )
    except ValueError:
        raise DownloadError(
            f"{source.base}{name} does not have the expected checksum",
            expected=f"sha256 {known}",
            cause="a corrupt download, or a new version at the source",
            fix=f"fetch again; for a new version first delete its line in {folder / CHECKSUMS}",
        ) from None
    if known is None:
        _record_checksum(folder, name, recorded)
    return folder / name


def read_checksums(folder: Path) -> dict[str, str]:
    """File names and checksums recorded in a folder."""
    path = folder / CHECKSUMS
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _record_checksum(folder: Path, name: str, recorded: dict[str, str]) -> None:
    """Add a file's checksum to those recorded."""
    sums = recorded | {name: file_hash(folder / name).removeprefix("sha256:")}
    with atomic_path(folder / CHECKSUMS) as part:
        part.write_text("".join(f"{digest}  {file}\n" for file, digest in sums.items()))
