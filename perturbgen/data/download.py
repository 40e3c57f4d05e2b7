"""Public sources of data, and fetching them: with checksums, and from where it stopped."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from perturbgen.core.config import Settings, merge
from perturbgen.core.console import progress
from perturbgen.core.errors import DownloadError, InputError, StorageError, suggest
from perturbgen.core.files import atomic_path, disk_errors, only_writer
from perturbgen.core.runs import file_hash

if TYPE_CHECKING:
    from requests import Response

_logger = logging.getLogger(__name__)

CHECKSUMS: Final = "SHA256SUMS"
_CHUNK = 1 << 20
_TIMEOUT = 60
_AGAIN = "run the same command again; it goes on from where it stopped"


class _DataSource(Settings):
    """A set of files at one place; ``sha256`` has the checksums by file name, as far as known."""

    title: str
    page: str
    licence: str
    size: str = "not stated"
    base: str = ""
    files: tuple[str, ...] = ()
    sha256: dict[str, str] = Field(default_factory=dict)
    note: str = ""

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        # a registry is a file from somewhere, and must not say where on this disk to write
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or not path.name:
                raise ValueError(f"{name!r} leads out of the folder; names of files are expected")
        return files

    @field_validator("base")
    @classmethod
    def _is_encrypted(cls, base: str) -> str:
        address = urlsplit(base)
        here = address.hostname in ("localhost", "127.0.0.1", "::1")
        if base and address.scheme != "https" and not (address.scheme == "http" and here):
            raise ValueError(
                f"{base!r} does not begin with https://, so anyone on the way can change it"
            )
        return base

    def fetch(self, folder: str | Path) -> list[Path]:
        """Download the files that are not in the folder yet, and verify all of them.

        An interrupted download goes on at the next call. A file whose checksum is not in the
        registry has it recorded in ``SHA256SUMS`` (the format of ``sha256sum -c``) when it first
        arrives, and is held to it from then on.
        """
        if not self.files:
            what = f"{self.title} cannot be fetched here"
            raise InputError(what, expected="a source with files", fix=self.note)
        folder = Path(folder)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with only_writer(folder):
            return [self._fetch_file(name, folder) for name in self.files]

    def checksums(self, folder: Path) -> dict[str, str]:
        """Of the files, by name, as recorded in the folder or known beforehand."""
        return _read_checksums(folder) | self.sha256

    def _fetch_file(self, name: str, folder: Path) -> Path:
        """One file, verified against the registry, or what was recorded when it first arrived."""
        import pooch

        recorded = _read_checksums(folder)
        known = self.sha256.get(name) or recorded.get(name)
        pooch.get_logger().setLevel("ERROR")
        _logger.info("%s%s", self.base, name)
        try:
            pooch.retrieve(
                self.base + name,
                f"sha256:{known}" if known else None,
                fname=name,
                path=folder,
                downloader=_resuming(folder / f"{name}.part"),
            )
        except ValueError:
            raise DownloadError(
                f"{self.base}{name} does not have the expected checksum",
                expected=f"sha256 {known}",
                cause="a corrupt download, or a new version at the source",
                fix=f"fetch again; for a new version first delete its line in {folder / CHECKSUMS}",
            ) from None
        if known is None:
            # No checksum is published: what arrives first is at least told from what comes later.
            recorded[name] = file_hash(folder / name).removeprefix("sha256:")
            _logger.warning(
                "no checksum of %s is published: what arrived is trusted, and recorded in %s",
                name,
                folder / CHECKSUMS,
            )
            with atomic_path(folder / CHECKSUMS) as part:
                part.write_text("".join(f"{digest}  {file}\n" for file, digest in recorded.items()))
        return folder / name


class Registry(Settings):
    """All sources by name."""

    sources: dict[str, _DataSource]

    @classmethod
    def read(cls, path: str | Path | None = None) -> Registry:
        """The sources this package knows, or those of another TOML file of the same form."""
        tables = merge(Path(path or Path(__file__).with_name("sources.toml")))
        return cls.load(base={"sources": tables})

    def find(self, name: str) -> _DataSource:
        """The source of this name."""
        if name not in self.sources:
            raise InputError(
                f"no source is called {name!r}: {suggest(name, self.sources)}",
                expected="a name of the registry",
                fix="perturbgen data list",
            )
        return self.sources[name]


def _read_checksums(folder: Path) -> dict[str, str]:
    """File names and checksums recorded in a folder."""
    path = folder / CHECKSUMS
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _resuming(part: Path) -> Callable[[str, Any, Any], None]:
    """What pooch calls to fetch a file: its own downloaders begin anew when a connection broke."""

    def download(url: str, output_file: Any, pooch: Any) -> None:
        with disk_errors(part):
            _download(url, part)
            part.replace(output_file)
            _tag_path(part).unlink(missing_ok=True)

    return download


def _tag_path(part: Path) -> Path:
    """Where the tag is kept by which the server knows whether its file is still the same."""
    return part.with_name(part.name + ".tag")


def _download(url: str, part: Path) -> None:
    """Fetch ``url`` into ``part``, from its end if the server still has the file it is part of."""
    import requests

    headers = {"Accept-Encoding": "identity"}  # compression would break the count of bytes
    tag = _tag_path(part)
    if part.exists() and part.stat().st_size and tag.exists():
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": tag.read_text()}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                # No bytes are left to send: the part is whole, or it belongs to another file.
                total = response.headers.get("Content-Range", "").rpartition("/")[2]
                if total != str(part.stat().st_size):
                    part.unlink()
                    _download(url, part)
                return
            if response.status_code not in (200, 206):
                cause, fix = "the server is busy, or access needs a login", _AGAIN
                if response.status_code in (404, 410):
                    cause = "the source has moved or renamed it"
                    fix = "see the source's page: perturbgen data list"
                what = f"{url}: the server answered {response.status_code} {response.reason}"
                raise DownloadError(what, expected="the file", cause=cause, fix=fix)
            _save_body(response, part)
    except requests.RequestException as error:
        # requests wraps what happened several times over; the innermost reason says it in a line.
        reason: BaseException = error
        while reason.__context__ is not None:
            reason = reason.__context__
        words = (str(reason).strip() or type(error).__name__).splitlines()[0]
        what = f"{url}: {words}"
        raise DownloadError(what, expected="an answer from the server", fix=_AGAIN) from None


def _save_body(response: Response, part: Path) -> None:
    """Write the body to ``part``: after what is there for a partial answer, else from the start."""
    resumed = response.status_code == 206
    have = part.stat().st_size if resumed else 0
    length = int(response.headers.get("Content-Length") or 0)
    total = have + length if "Content-Length" in response.headers else None
    # Before the first byte: hours of download would otherwise end in a full disk.
    free = shutil.disk_usage(part.parent).free
    if length > free:
        what = f"{part.parent} has {free / 1e9:.1f} GB free and {length / 1e9:.1f} GB are to come"
        raise StorageError(what, fix="free some space or choose another --out")
    tag = response.headers.get("ETag", "")
    # A weak tag promises the same meaning, not the same bytes.
    tag = response.headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag
    if tag:
        _tag_path(part).write_text(tag)
    else:
        _tag_path(part).unlink(missing_ok=True)
    if resumed:
        _logger.info("%s: going on from byte %s", part.name, f"{have:,}")
    with (
        open(part, "ab" if resumed else "wb") as handle,
        progress(f"{part.stem} (MB)", round(total / 1e6) if total else None) as tick,
    ):
        tick(have / 1e6)
        _copy(response, handle, tick)
    have = part.stat().st_size
    if total is not None and have != total:
        raise DownloadError(
            f"{response.url}: the connection broke off after {have:,} of {total:,} bytes",
            expected="the whole file",
            cause="an unstable network or a busy server",
            fix=_AGAIN,
        )


def _copy(response: Response, handle: Any, tick: Callable[[float], None]) -> None:
    """Copy the body as it arrives; a broken connection ends it (the size is checked after)."""
    from urllib3.exceptions import HTTPError

    try:
        while chunk := response.raw.read(_CHUNK):
            handle.write(chunk)
            tick(len(chunk) / 1e6)
    except HTTPError as error:
        _logger.debug("connection broke: %s", error)
