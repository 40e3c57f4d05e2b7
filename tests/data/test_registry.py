"""The registry of public data, and downloads from a server that behaves, breaks off or lies."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from perturbgen.core.errors import ConfigError, DownloadError, InputError, StorageError
from perturbgen.data import download as downloads
from perturbgen.data.download import CHECKSUMS, Registry, _DataSource

BODY = bytes(range(256)) * 400
DIGEST = hashlib.sha256(BODY).hexdigest()


@dataclass
class Site:
    """What the server holds and does; ``breaks`` are the bytes sent before each early close."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=lambda: {"data.bin": BODY})
    tag: str | None = '"v1"'
    breaks: list[int] = field(default_factory=list)
    ranges: bool = True
    requests: list[str | None] = field(default_factory=list)

    def source(self, **changes: object) -> _DataSource:
        return _DataSource.model_validate(
            {"title": "test", "page": "p", "licence": "l", "base": self.url, "files": ["data.bin"]}
            | changes
        )


@pytest.fixture
def site() -> Iterator[Site]:
    """A server on the local machine."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            site.requests.append(wanted)
            body = site.files.get(self.path.lstrip("/"))
            if body is None:
                self.send_error(404, "Not Found")
                return
            resumes = (
                wanted is not None and site.ranges and self.headers.get("If-Range") == site.tag
            )
            start = int(wanted[6:-1]) if resumes and wanted else 0
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if resumes else 200)
            if resumes:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            if site.tag:
                self.send_header("ETag", site.tag)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            rest = body[start:]
            self.wfile.write(rest[: site.breaks.pop(0)] if site.breaks else rest)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_complete_download_is_recorded_and_then_verified_without_a_request(
    site: Site, tmp_path: Path
) -> None:
    [path] = site.source().fetch(tmp_path)
    assert path.read_bytes() == BODY
    assert (tmp_path / CHECKSUMS).read_text() == f"{DIGEST}  data.bin\n"
    assert names(tmp_path) == {"data.bin", CHECKSUMS}
    site.source().fetch(tmp_path)
    assert site.requests == [None]


def test_a_file_that_changed_on_disk_is_fetched_again(site: Site, tmp_path: Path) -> None:
    [path] = site.source().fetch(tmp_path)
    path.write_bytes(b"spoilt")
    assert site.source().fetch(tmp_path)[0].read_bytes() == BODY


def test_a_broken_download_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.breaks = [50_000, 20_000]
    for arrived in (50_000, 70_000):
        with pytest.raises(
            DownloadError, match=rf"broke off after {arrived:,} of {len(BODY):,} bytes"
        ):
            site.source().fetch(tmp_path)
        assert (tmp_path / "data.bin.part").stat().st_size == arrived
        assert not (tmp_path / "data.bin").exists()
    [path] = site.source().fetch(tmp_path)
    assert path.read_bytes() == BODY
    assert site.requests == [None, "bytes=50000-", "bytes=70000-"]
    assert names(tmp_path) == {"data.bin", CHECKSUMS}


def test_a_file_that_changed_at_the_source_is_begun_anew(site: Site, tmp_path: Path) -> None:
    site.breaks = [50_000]
    with pytest.raises(DownloadError):
        site.source().fetch(tmp_path)
    site.files["data.bin"], site.tag = BODY[::-1], '"v2"'
    assert site.source().fetch(tmp_path)[0].read_bytes() == BODY[::-1]


@pytest.mark.parametrize(("ranges", "tag"), [(False, '"v1"'), (True, None), (True, 'W/"weak"')])
def test_a_server_that_cannot_resume_sends_all_again(
    site: Site, tmp_path: Path, ranges: bool, tag: str | None
) -> None:
    site.ranges, site.tag, site.breaks = ranges, tag, [50_000]
    with pytest.raises(DownloadError):
        site.source().fetch(tmp_path)
    assert site.source().fetch(tmp_path)[0].read_bytes() == BODY


def test_a_part_that_is_already_whole_is_accepted(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(BODY)
    (tmp_path / "data.bin.part.tag").write_text('"v1"')
    assert site.source().fetch(tmp_path)[0].read_bytes() == BODY
    assert site.requests == [f"bytes={len(BODY)}-"]


def test_a_part_that_is_longer_than_the_file_is_thrown_away(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(BODY * 2)
    (tmp_path / "data.bin.part.tag").write_text('"v1"')
    assert site.source().fetch(tmp_path)[0].read_bytes() == BODY


@pytest.mark.parametrize("recorded", [False, True])
def test_a_wrong_checksum_leaves_no_file(site: Site, tmp_path: Path, recorded: bool) -> None:
    if recorded:
        (tmp_path / CHECKSUMS).write_text(f"{DIGEST}  data.bin\n")
    site.files["data.bin"] = BODY[:-1] + b"!"
    with pytest.raises(DownloadError, match="does not have the expected checksum") as caught:
        site.source(sha256={} if recorded else {"data.bin": DIGEST}).fetch(tmp_path)
    assert DIGEST in str(caught.value)
    assert names(tmp_path) <= {CHECKSUMS}


def test_a_file_the_source_has_not_is_an_error_that_leaves_nothing(
    site: Site, tmp_path: Path
) -> None:
    with pytest.raises(DownloadError, match=r"gone\.bin: the server answered 404 Not Found"):
        site.source(files=["gone.bin"]).fetch(tmp_path)
    assert names(tmp_path) == set()


def test_no_server_is_an_error_in_one_line(tmp_path: Path) -> None:
    source = Site(url="http://127.0.0.1:9/").source()
    with pytest.raises(DownloadError, match="refused"):
        source.fetch(tmp_path)


def test_a_disk_too_small_is_noticed_before_the_download(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"0\.0 GB free"):
        site.source().fetch(tmp_path)
    assert names(tmp_path) == set()


def test_an_interrupt_keeps_what_has_arrived(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(response: object, handle: object, tick: object) -> None:
        handle.write(response.raw.read(30_000))  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(downloads, "_copy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            site.source().fetch(tmp_path)
    assert names(tmp_path) == {"data.bin.part", "data.bin.part.tag"}
    assert site.source().fetch(tmp_path)[0].read_bytes() == BODY
    assert site.requests[-1] == "bytes=30000-"


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'op3-kaggle'"):
        Registry.read().find("op3-kagle")


def test_a_source_behind_a_login_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be fetched") as caught:
        Registry.read().find("op3-kaggle").fetch(tmp_path)
    assert "kaggle competitions download" in str(caught.value)


def test_the_registry_covers_every_source_and_is_well_formed() -> None:
    sources = Registry.read().sources
    for start in (
        "op3-",
        "lincs-gse92742",
        "lincs-gse70138",
        "lincs2020",
        "rxrx1-",
        "rxrx19a-",
        "bbbc021-",
    ):
        assert any(name.startswith(start) for name in sources), start
    for name, source in sources.items():
        assert bool(source.files) != bool(source.note), name
        assert source.page.startswith("https://"), name
        assert not source.files or (
            source.base.startswith("https://") and source.base.endswith("/")
        ), name
        assert len(set(source.files)) == len(source.files), name
        assert set(source.sha256) <= set(source.files), name
        assert all(len(digest) == 64 for digest in source.sha256.values()), name


def test_a_misspelt_key_of_a_registry_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[x]\ntitle = "t"\npage = "p"\nlicense = "l"\n')
    with pytest.raises(ConfigError, match="license"):
        Registry.read(tmp_path / "mine.toml")


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/../../x", "..\\x", ""])
def test_a_registry_cannot_write_outside_its_folder(site: Site, name: str) -> None:
    with pytest.raises(ValueError, match="leads out of the folder"):
        site.source(files=[name])


@pytest.mark.parametrize("base", ["http://example.org/", "ftp://example.org/", "file:///etc/"])
def test_addresses_that_anyone_can_change_on_the_way_are_refused(site: Site, base: str) -> None:
    with pytest.raises(ValueError, match="https://"):
        site.source(base=base)


def test_trust_on_first_use_is_said(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site.source().fetch(tmp_path)
    assert "no checksum of data.bin is published" in caplog.text
    caplog.clear()
    site.source(sha256={"data.bin": DIGEST}).fetch(tmp_path)
    assert "no checksum" not in caplog.text
