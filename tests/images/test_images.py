"""Image files: found by key, read whole or not at all, shown in colour."""

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perturbgen.core.errors import InputError, SchemaError
from perturbgen.images.fields import FieldFiles, _check_images, _read_channel, read_field
from perturbgen.images.pictures import _CAPTION, ChannelColours


@pytest.fixture
def one_field(fixtures: dict[str, Path], tmp_path: Path) -> Path:
    folder = tmp_path / "HUVEC-01" / "Plate1"
    folder.mkdir(parents=True)
    for path in (fixtures["rxrx1"] / "images" / "HUVEC-01" / "Plate1").glob("B02_s1_*"):
        shutil.copy(path, folder)
    return folder


def test_rxrx1_and_bbbc021_are_found_by_plate_well_and_site(fixtures: dict[str, Path]) -> None:
    found = FieldFiles.find(fixtures["rxrx1"]).files
    assert len(found) == 4 * 4 * 10 * 2 - 2
    assert ("HUVEC-01_2", "B03", 2) not in found
    assert sorted(found["HUVEC-01_2", "B03", 1]) == [1, 2, 3, 4, 5, 6]
    tiffs = FieldFiles.find(fixtures["bbbc021"]).files
    assert read_field(tiffs["Week2_22121", "B02", 1], [1, 2, 4]).dtype == np.uint16
    assert read_field(tiffs["Week2_22121", "B02", 1], [1, 2, 4]).shape == (3, 32, 40)


def test_a_missing_channel(one_field: Path) -> None:
    (one_field / "B02_s1_w3.png").unlink()
    shutil.copy(one_field / "B02_s1_w1.png", one_field / "B03_s1_w3.png")
    rows = {
        row["what"]: row for row in _check_images(FieldFiles.find(one_field.parents[1]), limit=9)
    }
    assert not rows["fields without all channels"]["ok"]
    assert "HUVEC-01_1 B02 1" in rows["fields without all channels"]["found"]
    with pytest.raises(SchemaError, match="channels '3' are missing"):
        read_field(
            FieldFiles.find(one_field.parents[1]).files["HUVEC-01_1", "B02", 1], [1, 2, 3, 4, 5, 6]
        )


@pytest.mark.parametrize("pixels", [np.zeros((64, 32), np.uint8), np.zeros((64, 64), np.uint16)])
def test_mixed_sizes_and_depths(pixels: np.ndarray, one_field: Path) -> None:
    Image.fromarray(pixels).save(one_field / "B02_s1_w2.png")
    found = FieldFiles.find(one_field.parents[1]).files["HUVEC-01_1", "B02", 1]
    with pytest.raises(SchemaError, match="channels of one field differ"):
        read_field(found, [1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_png(share: float, one_field: Path) -> None:
    path = one_field / "B02_s1_w2.png"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match="cannot be read"):
        _read_channel(path)
    rows = {
        row["what"]: row for row in _check_images(FieldFiles.find(one_field.parents[1]), limit=9)
    }
    assert "B02_s1_w2.png" in rows["unreadable or mixed"]["found"]


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_truncated_tiff(share: float, fixtures: dict[str, Path], tmp_path: Path) -> None:
    source = next(fixtures["bbbc021"].rglob("*.tif"))
    path = tmp_path / source.name
    path.write_bytes(source.read_bytes()[: int(share * source.stat().st_size)])
    with pytest.raises(InputError, match="cannot be read"):
        _read_channel(path)


def with_tag(source: Path, path: Path, tag: int, value: int) -> Path:
    """A little-endian TIFF with another value of a tag of one number."""
    content = bytearray(source.read_bytes())
    assert content[:2] == b"II"
    (at,) = struct.unpack_from("<I", content, 4)
    (entries,) = struct.unpack_from("<H", content, at)
    for entry in range(at + 2, at + 2 + 12 * entries, 12):
        if struct.unpack_from("<H", content, entry)[0] == tag:
            struct.pack_into("<HII", content, entry + 2, 4, 1, value)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("tag", "value"),
    # of 40 x 32 pixels: bytes of the one strip, its rows, height and width
    [(279, 2560 - 80), (279, 2560 + 80), (278, 16), (257, 31), (256, 38)],
)
def test_strips_that_are_not_the_pictures(
    tag: int, value: int, fixtures: dict[str, Path], tmp_path: Path
) -> None:
    source = next(fixtures["bbbc021"].rglob("*.tif"))
    with pytest.raises(InputError, match=r"strips have .* bytes, but"):
        _read_channel(with_tag(source, tmp_path / "a.tif", tag, value))


@pytest.mark.parametrize(
    # what other writers do: no size at all, padding, a strip "as high as can be"
    ("tag", "value"),
    [(279, 0), (279, 2560 + 4), (278, 2**32 - 1)],
)
def test_strips_as_others_write_them(
    tag: int, value: int, fixtures: dict[str, Path], tmp_path: Path
) -> None:
    source = next(fixtures["bbbc021"].rglob("*.tif"))
    found = _read_channel(with_tag(source, tmp_path / "a.tif", tag, value))
    np.testing.assert_array_equal(found, _read_channel(source))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiffs_of_every_kind_are_read(tmp_path: Path, compression: str | None, dtype: type) -> None:
    pixels = np.random.default_rng(0).integers(255, size=(300, 701)).astype(dtype)
    for rows in (None, 7, 300):
        tags = {} if rows is None else {278: rows}
        Image.fromarray(pixels).save(tmp_path / "a.tif", compression=compression, tiffinfo=tags)
        np.testing.assert_array_equal(_read_channel(tmp_path / "a.tif"), pixels)


def test_colour_images_empty_files_and_folders_without_images(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "rgb.png")
    with pytest.raises(InputError, match="one grey channel"):
        _read_channel(tmp_path / "rgb.png")
    (tmp_path / "none.png").touch()
    with pytest.raises(InputError, match="0 bytes"):
        _read_channel(tmp_path / "none.png")
    with pytest.raises(InputError, match="no images of a known layout"):
        FieldFiles.find(tmp_path)


def composite(stack: np.ndarray) -> np.ndarray:
    """The first tile of a contact sheet."""
    return ChannelColours(len(stack))._sheet(stack)[
        _CAPTION : _CAPTION + stack.shape[1], : stack.shape[2]
    ]


def test_colours_add_up_by_hand() -> None:
    stack = np.zeros((6, 1, 3), np.uint8)
    stack[0, 0, 0], stack[2, 0, 1], stack[1, 0, 2], stack[2, 0, 2] = 51, 32, 107, 64
    found = composite(stack)[0].tolist()
    # nuclei in full, half of actin, ER and actin
    assert found == [[19, 0, 249], [127, 0, 12], [255, 255, 56]]
    sheet = ChannelColours(6)._sheet(np.zeros((6, 30, 50), np.uint8))
    assert sheet.shape == (2 * (30 + _CAPTION + 4), 4 * 54, 3)
    with pytest.raises(SchemaError, match="4 channels"):
        composite(np.zeros((4, 2, 2)))


@pytest.mark.data
def test_six_real_channels(real_data: Path) -> None:
    images = FieldFiles.find(real_data / "imaging" / "rxrx1" / "png").files
    stack = read_field(images["HEPG2-08_1", "B02", 1], [1, 2, 3, 4, 5, 6])
    assert stack.shape == (6, 512, 512)
    picture = composite(stack)
    assert picture.std(axis=(0, 1)).min() > 15  # all of red, green and blue say something


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000)])
def test_a_picture_that_would_fill_memory_is_explained(
    size: tuple[int, int], tmp_path: Path
) -> None:
    # Pillow warns of the first and refuses the second, each in a way of its own
    header = struct.pack(">II5B", *size, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", b""), (b"IEND", b"")]
    path = tmp_path / "large.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )
    )
    with pytest.raises(InputError, match="decompression bomb"):
        _read_channel(path)


def test_no_changed_byte_of_a_png_gives_other_pixels(tmp_path: Path) -> None:
    path, pixels = tmp_path / "a.png", np.random.default_rng(0).integers(0, 99, (8, 8), np.uint8)
    Image.fromarray(pixels).save(path)
    content = path.read_bytes()
    told = 0
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            np.testing.assert_array_equal(_read_channel(path), pixels)
        except InputError:
            told += 1
    assert told > len(content) * 0.9
