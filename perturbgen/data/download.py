"""Downloads over HTTP that go on where they stopped."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perturbgen.console import Tick, progress
from perturbgen.errors import DownloadError, StorageError
from perturbgen.files import disk_errors

if TYPE_CHECKING:
    from requests import Response

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
TIMEOUT = 60
AGAIN = "run the same command again; it goes on from where it stopped"


@dataclass(frozen=True)
class ResumingDownloader:
    """What pooch calls to fetch a file; the unfinished part stays in ``part`` when the connection breaks."""

    part: Path

    def __call__(self, url: str, output_file: Any, pooch: Any, check_only: bool = False) -> bool | None:
        """Fetch ``url`` to ``part``, then give it the name that pooch checks."""
        with disk_errors(self.part):
            download(url, self.part)
            self.part.replace(output_file)
            tag_path(self.part).unlink(missing_ok=True)
        return None


def download(url: str, part: Path) -> None:
    """Fetch ``url`` into ``part``, going on from its end if it is there and the server still has the same file."""
    import requests

    try:
        with requests.get(url, headers=resume_headers(part), stream=True, timeout=TIMEOUT) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                finish_or_discard(url, response, part)
                return
            require_success(url, response)
            save(response, part)
    except requests.RequestException as error:
        raise DownloadError(f"{url}: {first_words(error)}", expected="an answer from the server", fix=AGAIN) from None


def first_words(error: Exception) -> str:
    """The innermost reason of a connection error, in a line."""
    reason: BaseException = error
    while reason.__context__ is not None:
        reason = reason.__context__
    return (str(reason).strip() or type(error).__name__).splitlines()[0]


def resume_headers(part: Path) -> dict[str, str]:
    """Ask for the rest of a file, provided it is still the one that was begun; compression would break the count."""
    headers = {"Accept-Encoding": "identity"}
    tag = tag_path(part)
    if part.exists() and part.stat().st_size and tag.exists():
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": tag.read_text()}
    return headers


def tag_path(part: Path) -> Path:
    """Where the server's tag of an unfinished file is kept."""
    return part.with_name(part.name + ".tag")


def require_success(url: str, response: Response) -> None:
    """The server has the file."""
    if response.status_code not in (200, 206):
        gone = response.status_code in (404, 410)
        raise DownloadError(
            f"{url}: the server answered {response.status_code} {response.reason}",
            expected="the file",
            cause="the source has moved or renamed it" if gone else "the server is busy, or access needs a login",
            fix="see the source's page: perturbgen data list" if gone else AGAIN,
        )


def finish_or_discard(url: str, response: Response, part: Path) -> None:
    """No bytes are left to send: the part is whole, or it belongs to another file and is fetched anew."""
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    if total != str(part.stat().st_size):
        part.unlink()
        download(url, part)


def save(response: Response, part: Path) -> None:
    """Write the body to ``part``: after what is there for a partial answer, else from the start."""
    resumed = response.status_code == 206
    have = part.stat().st_size if resumed else 0
    length = response.headers.get("Content-Length")
    total = have + int(length) if length else None
    require_space(part, int(length or 0))
    remember_tag(response, part)
    if resumed:
        logger.info("%s: going on from byte %s", part.name, f"{have:,}")
    with (
        open(part, "ab" if resumed else "wb") as handle,
        progress(f"{part.stem} (MB)", round(total / 1e6) if total else None) as tick,
    ):
        tick(have / 1e6)
        copy(response, handle, tick)
    require_whole(response.url, part, total)


def copy(response: Response, handle: Any, tick: Tick) -> None:
    """Copy the body as it arrives; a connection that breaks ends it (the size is compared afterwards)."""
    from urllib3.exceptions import HTTPError

    try:
        while chunk := response.raw.read(CHUNK):
            handle.write(chunk)
            tick(len(chunk) / 1e6)
    except HTTPError as error:
        logger.debug("connection broke: %s", error)


def require_whole(url: str, part: Path, total: int | None) -> None:
    """All bytes that the server announced have arrived."""
    have = part.stat().st_size
    if total is not None and have != total:
        raise DownloadError(
            f"{url}: the connection broke off after {have:,} of {total:,} bytes",
            expected="the whole file",
            cause="an unstable network or a busy server",
            fix=AGAIN,
        )


def require_space(part: Path, wanted: int) -> None:
    """The disk can hold what is still to come."""
    free = shutil.disk_usage(part.parent).free
    if wanted > free:
        raise StorageError(
            f"{part.parent} has {free / 1e9:.1f} GB free and {wanted / 1e9:.1f} GB are to come",
            fix="free some space or choose another --out",
        )


def remember_tag(response: Response, part: Path) -> None:
    """Keep the server's tag of the file, by which a later request knows that it is still the same."""
    tag = response.headers.get("ETag", "")
    tag = response.headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag
    if tag:
        tag_path(part).write_text(tag)
    else:
        tag_path(part).unlink(missing_ok=True)
