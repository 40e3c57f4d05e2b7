"""The streamed csv reader gives what a correct one gives, and says where a file is broken."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import InputError, SchemaError
from perturbgen.profiles import read_profiles, stream
from perturbgen.profiles.stream import _read_embeddings, stream_profiles


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    ids, values = zip(*_read_embeddings([path], key="site_id")[1], strict=True)
    return np.concatenate(ids), np.concatenate(values)


@pytest.mark.parametrize("block", [200, 1 << 20])
def test_numbers_in_every_notation(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_BLOCK", block)
    texts = [
        "1",
        "-1.5",
        "+.25",
        "3.",
        "1e3",
        "2.5E-3",
        "-1.25e+02",
        "0",
        "-0.0",
        "123456789012345678901234",
        "1e-46",
        "0.000000000000000000000001234",
        "1.17549435e-38",
        "3.4028235e38",
        "",
        "nan",
        "NaN",
        "inf",
        "-Inf",
    ]
    path = tmp_path / "e.csv"
    path.write_text("site_id,a\n" + "".join(f"w{i},{text}\n" for i, text in enumerate(texts)))
    ids, values = read(path)
    expected = np.array([float(text or "nan") for text in texts]).astype(np.float32)
    np.testing.assert_array_equal(values[:, 0], expected)
    assert ids.tolist() == [f"w{i}" for i in range(len(texts))]


def test_random_numbers_are_those_of_numpy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(300, 11)) * 10.0 ** rng.integers(-30, 30, (300, 11))).astype(
        np.float32
    )
    table = pd.DataFrame(values, columns=[f"feature_{i}" for i in range(11)])
    table.insert(4, "site_id", [f"X_{i}" for i in range(300)])
    table.to_csv(tmp_path / "e.csv", index=False)
    ids, found = read(tmp_path / "e.csv")
    np.testing.assert_array_equal(found, values)
    assert ids[299] == "X_299"


def same_bits(found: np.ndarray, texts: list[str]) -> None:
    """Equal to Python's own reading, rounded to float32, signs of zero included."""
    with np.errstate(over="ignore"):
        expected = np.array([float(text or "nan") for text in texts]).astype(np.float32)
    np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("style", ["{:.8g}", "{:.17g}", "{:.6f}", "{:.3e}", "{:.25f}", "{!r}"])
def test_every_way_of_writing_a_float_is_read_to_the_bit(style: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=6000) * 10.0 ** rng.integers(-12, 12, 6000)
    texts = [style.format(float(value)) for value in values]
    (tmp_path / "e.csv").write_text(
        "site_id,a\n" + "".join(f"w{i},{text}\n" for i, text in enumerate(texts))
    )
    same_bits(read(tmp_path / "e.csv")[1][:, 0], texts)


def test_numbers_between_two_float32_are_rounded_as_python_does(tmp_path: Path) -> None:
    """Exact middles, and decimals next to them, which a reader with two roundings gets wrong."""
    rng = np.random.default_rng(2)
    below = rng.normal(size=400).astype(np.float32)
    middle = (below.astype(np.float64) + np.nextafter(below, np.float32(9)).astype(np.float64)) / 2
    texts = [f"{value:.{places}f}" for value in middle.tolist() for places in (17, 20, 30, 60)]
    texts += [
        "16777217",
        "16777219",
        "9007199254740993",
        "123456789.5",
        "12345678.25",
        "1e22",
        "1e23",
        "1e-23",
        "3.4028235677973366e38",
        "3.5e38",
        "-3.5e38",
        "1.401298464324817e-45",
        "7.006492321624085e-46",
        "7.006492321624086e-46",
        "00000000000000000000001.5",
        "0.000000000000000000000000000000000000000000001",
    ]
    (tmp_path / "e.csv").write_text(
        "a,site_id\n" + "".join(f"{text},w{i}\n" for i, text in enumerate(texts))
    )
    same_bits(read(tmp_path / "e.csv")[1][:, 0], texts)


@pytest.mark.parametrize("block", [64, 1 << 20])
def test_what_pandas_reads_is_read_alike(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quotes, missing values, words, spaces, empty lines, CRLF, no last line end: the same ids and
    values.
    """
    monkeypatch.setattr(stream, "_BLOCK", block)
    text = (
        '"site_id","a","b"\r\n"x, ""1""",1.5,"2.25"\r\n\r\ny,,-inf\r\nz,NA,null\r\nü,NaN,inf\r\n'
        'v, 3.5,-0.0\r\nw,n/a,Infinity\r\nu,12345678901,"0.1"'
    )
    (tmp_path / "e.csv").write_bytes(text.encode())
    ids, values = read(tmp_path / "e.csv")
    theirs = pd.read_csv(tmp_path / "e.csv", index_col="site_id", float_precision="round_trip")
    assert ids.tolist() == theirs.index.tolist()
    expected = theirs.to_numpy(np.float32)
    np.testing.assert_array_equal(np.isnan(values), np.isnan(expected))
    np.testing.assert_array_equal(
        np.nan_to_num(values).view(np.int32), np.nan_to_num(expected).view(np.int32)
    )


def test_windows_line_ends_gzip_and_a_last_line_without_end(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_bytes(b"site_id,a,b\r\nx,1,2\r\ny,3,4")
    with gzip.open(tmp_path / "e.csv.gz", "wb") as file:
        file.write(b"site_id,a,b\nx,1,2\ny,3,4\n")
    for name in ("e.csv", "e.csv.gz"):
        ids, values = read(tmp_path / name)
        assert ids.tolist() == ["x", "y"]
        assert values.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x,1,2\ny,3\n", "line 3: column 'b' is missing"),
        ("x,1,2\ny,3,4,5\n", "line 3: there are too many fields"),
        ("x,1,two\n", "line 2: column 'b' is missing or no number"),
        ("x,1,2\ny,1,2e\n", "line 3: column 'b'"),
        ("x,1,2\ny,1-2,4\n", "line 3: column 'a'"),
        ('x,"1,2"\n', "line 2: column 'a'"),
        ('x,1,2\n\n\ny,1,"2\nz,3,4\n', "line 5: column 'b'"),
        ("x,1_0,2\n", "line 2: column 'a'"),
        ("x,0x10,2\n", "line 2: column 'a'"),
        ("x,1.2.3,2\n", "line 2: column 'a'"),
        ("x,-,2\n", "line 2: column 'a'"),
        ("x,.,2\n", "line 2: column 'a'"),
        ("x,1 2,2\n", "line 2: column 'a'"),
        ("x\n", "line 2: column 'a'"),
        ("x,1,2\ny,3,4\nz,0.1", "line 4: column 'b'"),
    ],
)
def test_a_broken_line_is_named(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("site_id,a,b\n" + text)
    with pytest.raises(InputError, match=words):
        read(tmp_path / "e.csv")


def test_a_truncated_gzip_is_said(tmp_path: Path) -> None:
    body = gzip.compress(b"site_id,a\n" + b"".join(b"x%d,%d.5\n" % (i, i) for i in range(20_000)))
    (tmp_path / "e.csv.gz").write_bytes(body[: len(body) // 2])
    with pytest.raises(InputError, match="cannot be decompressed"):
        read(tmp_path / "e.csv.gz")


def test_joining(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("site_id,a,b\nz,5,6\nstray,0,0\nx,1,2\n")
    meta = pd.DataFrame({"site_id": ["x", "y", "z"], "drug": ["p", "q", "r"]})
    profiles, orphans = stream_profiles(
        [tmp_path / "e.csv"], meta, key="site_id", out=tmp_path / "p", where="e"
    )
    assert profiles.meta.to_numpy().tolist() == [["z", "r"], ["x", "p"]]
    assert profiles.values.tolist() == [[5, 6], [1, 2]]
    assert (orphans.without_labels, orphans.without_values) == (("stray",), ("y",))
    again = read_profiles(tmp_path / "p")
    np.testing.assert_array_equal(again.values, profiles.values)


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ("x,1\nx,2\n", SchemaError, "duplicated id"),
        ("k,1\n", SchemaError, "no id of the embeddings occurs"),
        ("", InputError, "no rows"),
    ],
)
def test_ids_that_do_not_join(
    body: str, error: type[Exception], words: str, tmp_path: Path
) -> None:
    (tmp_path / "e.csv").write_text("site_id,a\n" + body)
    meta = pd.DataFrame({"site_id": ["x", "y"]})
    with pytest.raises(error, match=words):
        stream_profiles([tmp_path / "e.csv"], meta, key="site_id", out=tmp_path / "p", where="e")
    assert not (tmp_path / "p").exists()
    assert not list(tmp_path.glob("*.part*"))


def test_a_table_without_its_key(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("id,a\nx,1\n")
    with pytest.raises(SchemaError, match="no column 'site_id'"):
        _read_embeddings([tmp_path / "e.csv"], key="site_id")
