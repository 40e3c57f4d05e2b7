"""Submissions for the real id_map: a right one passes, a wrong one is refused for its reason."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from perturbgen import cli, submission
from perturbgen.core.errors import ConfigError, InputError, SchemaError
from perturbgen.submission import SubmissionError, _write_csv

KEY = ["cell_type", "sm_name"]
N_GENES = 400
Lines = list[list[str]]
ABOUT = {"dataset_id": "neurips-2023-data", "method_id": "ours"}


@pytest.fixture
def small(tmp_path: Path) -> tuple[pd.DataFrame, pd.DataFrame, Path]:
    """Predictions, shuffled, the id_map and a sample submission: six conditions, five genes."""
    ids = pd.DataFrame(
        {"id": range(6), "cell_type": ["B"] * 3 + ["M"] * 3, "sm_name": list("abc") * 2}
    )
    genes = ["TP53", "A1BG", "CD69", "IL2", "NA"]
    values = np.random.default_rng(0).normal(0, 3, (6, 5))
    predictions = pd.DataFrame(values, pd.MultiIndex.from_frame(ids[KEY]), genes)
    like = tmp_path / "sample_submission.csv"
    pd.DataFrame(0.0, pd.Index(ids["id"], name="id"), genes).to_csv(like)
    ids.to_csv(tmp_path / "id_map.csv", index=False)
    return predictions.iloc[[3, 1, 5, 0, 2, 4], [2, 0, 4, 1, 3]], ids, like


def test_rows_and_genes_are_joined_by_name_and_read_back_as_float32(small, tmp_path: Path) -> None:
    predictions, ids, like = small
    out = submission.write(predictions, ids, like, tmp_path / "s.csv")
    kinds = dict.fromkeys(predictions.columns, np.float32)
    found = pd.read_csv(out, index_col="id", dtype=kinds, keep_default_na=False)
    assert found.columns.tolist() == ["TP53", "A1BG", "CD69", "IL2", "NA"]
    for row in ids.itertuples():
        for gene in found:
            assert found.loc[row.id, gene] == np.float32(
                predictions.loc[(row.cell_type, row.sm_name), gene]
            )
    assert submission.check(out, ids, like) == []


@pytest.mark.parametrize("give", ["columns", "compound", "levels swapped"])
def test_conditions_may_be_given_in_other_ways(small, tmp_path: Path, give: str) -> None:
    predictions, ids, like = small
    expected = submission.write(predictions, ids, like, tmp_path / "expected.csv").read_text()
    other = {
        "columns": predictions.reset_index(),
        "compound": predictions.rename_axis(["cell_type", "compound"]),
        "levels swapped": predictions.swaplevel(),
    }[give]
    assert submission.write(other, ids, like, tmp_path / "other.csv").read_text() == expected


def test_open_problems_form(small, tmp_path: Path) -> None:
    predictions, ids, like = small
    reordered = ids[["id", "sm_name", "cell_type"]]  # the order of Open Problems' own id_map
    out = submission.write(predictions, reordered, like, tmp_path / "s.h5ad", about=ABOUT)
    adata = anndata.read_h5ad(out)
    assert adata.layers["prediction"].dtype == np.float32
    expected = predictions.loc[pd.MultiIndex.from_frame(ids[KEY]), adata.var_names].astype(
        np.float32
    )
    assert np.array_equal(adata.layers["prediction"], expected)
    assert submission.check(out, reordered, like) == []
    adata.layers["prediction"][2, 3] = np.inf
    adata.obs["sm_name"] = adata.obs["sm_name"].astype(str)
    adata.obs.iloc[4, adata.obs.columns.get_loc("sm_name")] = "x"
    adata.write_h5ad(out)
    assert [str(f) for f in submission.check(out, reordered, like)] == [
        "'x', where id_map has 'b' (row 6 (id 4), column sm_name)",
        "infinite (row 4 (id 2), column IL2)",
    ]
    del adata.layers["prediction"]
    adata.write_h5ad(out)
    assert "no layer 'prediction'" in str(submission.check(out, reordered, like)[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.drop(index=("B", "c")), "lacks this condition (row B | c)"),
        (lambda p: p.drop(columns="IL2"), "lacks this gene (column IL2)"),
        (lambda p: pd.concat([p, p.iloc[:1]]), "has this condition twice (row M | a)"),
        (lambda p: pd.concat([p, p[["IL2"]]], axis=1), "has this gene twice (column IL2)"),
        (lambda p: p.mask(p == p.iloc[1, 2]), "NaN (row B | b, column NA)"),
        (lambda p: p.replace(p.iloc[0, 0], np.inf), "infinite (row M | a, column CD69)"),
        (lambda p: p.replace(p.iloc[0, 0], 1e39), "infinite (row M | a, column CD69)"),
        (lambda p: p.assign(IL2="high"), "not a column of numbers (column IL2)"),
    ],
)
def test_predictions_that_make_no_submission_leave_no_file(
    small, tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], words: str
) -> None:
    predictions, ids, like = small
    with pytest.raises(SubmissionError) as refused:
        submission.write(change(predictions), ids, like, tmp_path / "s.csv")
    assert words in str(refused.value)
    assert not list(tmp_path.glob("s*.csv")) or [p.name for p in tmp_path.glob("s*.csv")] == [
        like.name
    ]


def test_an_index_that_names_no_condition_is_refused(small, tmp_path: Path) -> None:
    predictions, ids, like = small
    with pytest.raises(SchemaError, match="which condition"):
        submission.write(predictions.reset_index(drop=True), ids, like, tmp_path / "s.csv")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ids: pd.concat([ids, ids.iloc[:1]]), "duplicated id: 0"),
        (lambda ids: ids.assign(sm_name="a"), "duplicated cell_type and sm_name"),
        (lambda ids: ids.drop(columns="sm_name"), "no column 'sm_name'"),
        (lambda ids: ids.replace("b", None), "empty field"),
    ],
)
def test_a_broken_id_map_is_refused(
    small, tmp_path: Path, change: Callable[..., pd.DataFrame], words: str
) -> None:
    predictions, ids, like = small
    path = tmp_path / "broken.csv"
    change(ids).to_csv(path, index=False)
    for given in (path, change(ids)):
        with pytest.raises(SchemaError) as refused:
            submission.write(predictions, given, like, tmp_path / "s.csv")
        assert words.replace("duplicated id: 0", "duplicated id") in str(refused.value)


def test_a_sample_that_is_none_is_refused(small, tmp_path: Path) -> None:
    predictions, ids, like = small
    with pytest.raises(SchemaError, match="begins with the column 'cell_type'"):
        submission.write(
            predictions, ids, with_text(tmp_path / "x.csv", "cell_type,A\n"), tmp_path / "s.csv"
        )
    with pytest.raises(SchemaError, match="twice: 'A'"):
        submission.write(
            predictions, ids, with_text(tmp_path / "x.csv", "id,A,A\n"), tmp_path / "s.csv"
        )
    with pytest.raises(InputError, match=r"neither \.csv nor \.h5ad"):
        submission.check(with_text(tmp_path / "x.txt", "id"), ids, like)
    with pytest.raises(InputError, match="not a readable h5ad"):
        submission.check(with_text(tmp_path / "x.h5ad", "id"), ids, like)


def with_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def real(
    real_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pd.DataFrame, Path, list[str]]:
    """The real rows to predict, a sample submission, and the first of the real genes."""
    genes = (real_data / "op3" / "genes_18211.txt").read_text().split()[:N_GENES]
    ids = pd.read_csv(real_data / "op3" / "id_map.csv")
    like = tmp_path_factory.mktemp("sample") / "sample_submission.csv"
    like.write_text(",".join(["id", *genes]) + "\n")
    return ids, like, genes


@pytest.mark.slow
@pytest.mark.data
def test_the_real_size_is_quick(real, real_data: Path, tmp_path: Path) -> None:
    ids, _, _ = real
    genes = like = (real_data / "op3" / "genes_18211.txt").read_text().split()
    values = np.random.default_rng(0).normal(0, 3, (255, 18211)).astype(np.float32)
    predictions = pd.DataFrame(values, pd.MultiIndex.from_frame(ids[KEY]), genes).iloc[::-1, ::-1]
    start = time.process_time()
    out = submission.write(predictions, ids, like, tmp_path / "s.csv")
    assert time.process_time() - start < 15
    assert submission.check(out, ids, like) == []


@pytest.mark.parametrize("verb", ["write", "check"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, verb: str) -> None:
    genes = [f"G{i}" for i in range(1000)]
    peaks = []
    for rows in (20, 200):
        ids = pd.DataFrame(
            {"id": range(rows), "cell_type": "B", "sm_name": [f"c{i}" for i in range(rows)]}
        )
        values = np.random.default_rng(0).normal(0, 3, (rows, 1000)).astype(np.float32)
        out = submission.write(
            pd.DataFrame(values, pd.MultiIndex.from_frame(ids[KEY]), genes),
            ids,
            genes,
            tmp_path / "s.csv",
        )
        tracemalloc.start()
        if verb == "write":
            _write_csv(values, ids["id"].to_numpy(), genes, out)
        else:
            submission.check(out, ids, genes)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]


@pytest.fixture(scope="module")
def valid(real, tmp_path_factory: pytest.TempPathFactory) -> Lines:
    """The fields of a valid submission for the real rows and genes (a zero keeps it quick)."""
    ids, _, genes = real
    return [["id", *genes], *([str(name), *["0"] * len(genes)] for name in ids["id"])]


def swap(lines: Lines, i: int, j: int) -> None:
    lines[i], lines[j] = lines[j], lines[i]


def swap_columns(lines: Lines, i: int, j: int) -> None:
    for row in lines:
        row[i], row[j] = row[j], row[i]


def put(lines: Lines, row: int, column: int, text: str) -> None:
    lines[row][column] = text


# What was done to the file, and the first thing that must be said of it; row 1 is the header.
CORRUPTIONS: dict[str, tuple[Callable[[Lines], object], str]] = {
    "a row is missing": (lambda x: x.pop(10), "id 9 is missing: B cells | "),
    "a row is repeated": (lambda x: x.append(x[5]), "id 4 occurs twice"),
    "a foreign id": (
        lambda x: put(x, 3, 0, "900"),
        "id 900 is not in id_map (row 4 (id 900), column id)",
    ),
    "ids as floats": (
        lambda x: put(x, 3, 0, "2.0"),
        "id '2.0' is not a whole number (row 4 (id 2.0), column id)",
    ),
    "ids are names": (
        lambda x: put(x, 1, 0, "B cells"),
        "id 'B cells' is not a whole number (row 2",
    ),
    "rows in another order": (
        lambda x: swap(x, 7, 8),
        "ids are in another order: here should be 6 (row 8 (id 7)",
    ),
    "genes in another order": (
        lambda x: swap_columns(x, 4, 9),
        "genes are in another order: here should be A2M",
    ),
    "a gene is missing": (lambda x: [row.pop(17) for row in x], "gene is missing (column "),
    "a gene is misspelt": (lambda x: put(x, 0, 1, "A1BGG"), "gene is missing (column A1BG)"),
    "a gene is repeated": (lambda x: put(x, 0, 2, "A1BG"), "gene is missing (column A1BG-AS1)"),
    "no id column": (
        lambda x: put(x, 0, 0, "index"),
        "the first column is not 'id' (row 1, column index)",
    ),
    "NaN": (lambda x: put(x, 100, 18, "NaN"), "NaN (row 101 (id 99), column "),
    "an underscore": (
        lambda x: put(x, 2, 1, "1_0"),
        "'1_0' is not a number (row 3 (id 1), column A1BG)",
    ),
    "infinity": (lambda x: put(x, 255, N_GENES, "-inf"), "infinite (row 256 (id 254), column "),
    "an empty field": (lambda x: put(x, 2, 1, ""), "no value (row 3 (id 1), column A1BG)"),
    "text for a number": (
        lambda x: put(x, 2, 1, "1,5"),
        "'1,5' is not a number (row 3 (id 1), column A1BG)",
    ),
    "beyond float32": (
        lambda x: put(x, 2, 2, "1e300"),
        "1e+300, too large for float32 (row 3 (id 1), column A1",
    ),
    "a row breaks off": (
        lambda x: x[255].__delitem__(slice(50, None)),
        f"50 fields, the header has {N_GENES + 1}",
    ),
}


@pytest.mark.data
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupted_submission_is_refused_for_its_reason(
    real, valid: Lines, tmp_path: Path, name: str
) -> None:
    ids, like, _ = real
    lines = [list(row) for row in valid]
    corrupt, words = CORRUPTIONS[name]
    corrupt(lines)
    path = tmp_path / "s.csv"
    path.write_text(
        "\n".join(
            ",".join(f'"{field}"' if "," in field else field for field in row) for row in lines
        )
    )
    found = submission.check(path, ids, like)
    assert found
    assert str(found[0]).startswith(words)
    assert len(found) <= 3
    assert all(finding.severity == "error" for finding in found)


@pytest.mark.data
def test_the_valid_one_is_valid_and_a_wild_value_is_a_warning(
    real, valid: Lines, tmp_path: Path
) -> None:
    ids, like, _ = real
    path = tmp_path / "s.csv"
    path.write_text("\n".join(map(",".join, valid)))
    assert submission.check(path, ids, like) == []
    lines = [list(row) for row in valid]
    lines[3][5] = "-4000"
    path.write_text("\n".join(map(",".join, lines)))
    (found,) = submission.check(path, ids, like)
    assert found.severity == "warning"
    assert "-4000 the largest" in str(found)
    assert found.row == "4 (id 2)"


def test_the_command_line(small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, _, like = small
    predictions.reset_index().to_parquet(tmp_path / "p.parquet")
    also = ["--id-map", str(tmp_path / "id_map.csv"), "--like", str(like)]
    out = str(tmp_path / "s.csv")
    assert cli._run(["submit", str(tmp_path / "p.parquet"), *also, "--out", out]) == 0
    assert cli._run(["check-submission", out, *also]) == 0
    assert "valid" in capsys.readouterr().out
    (tmp_path / "s.csv").write_text((tmp_path / "s.csv").read_text().replace("\n2,", "\n7,"))
    assert cli._run(["check-submission", out, *also]) == 2
    assert "id 7 is not in id_map" in capsys.readouterr().out
    predictions.drop(columns="IL2").reset_index().to_csv(tmp_path / "p.csv", index=False)
    before = Path(out).read_text()
    assert cli._run(["submit", str(tmp_path / "p.csv"), *also, "--out", out]) == 2
    error = capsys.readouterr().err
    assert "lacks this gene (column IL2)" in error
    assert "Traceback" not in error
    assert Path(out).read_text() == before


def test_what_an_h5ad_says_of_itself_is_its_uns_and_a_csv_has_no_place_for_it(
    small, tmp_path: Path
) -> None:
    predictions, ids, like = small
    out = submission.write(predictions, ids, like, tmp_path / "s.h5ad", about=ABOUT)
    assert dict(anndata.read_h5ad(out).uns) == ABOUT
    assert submission.check(out, ids, like) == []
    with pytest.raises(ConfigError, match="has no place for 'dataset_id', 'method_id'"):
        submission.write(predictions, ids, like, tmp_path / "s.csv", about=ABOUT)


def test_an_h5ad_that_does_not_say_what_it_is_gets_a_warning(
    small, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predictions, ids, like = small
    out = submission.write(
        predictions, ids, like, tmp_path / "s.h5ad", about={"dataset_id": "x", "method_id": ""}
    )
    [found] = submission.check(out, ids, like)
    assert (found.severity, found.column) == ("warning", "method_id")
    assert str(found) in caplog.text
    submission.write(predictions, ids, like, out)
    assert [finding.column for finding in submission.check(out, ids, like)] == [
        "dataset_id",
        "method_id",
    ]


def test_the_command_line_says_what_an_h5ad_is(
    small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions, _, like = small
    predictions.reset_index().to_parquet(tmp_path / "p.parquet")
    also = ["--id-map", str(tmp_path / "id_map.csv"), "--like", str(like)]
    asked = [
        "submit",
        str(tmp_path / "p.parquet"),
        *also,
        "--dataset-id",
        "neurips-2023-data",
        "--method-id",
        "ours",
    ]
    out = str(tmp_path / "s.h5ad")
    assert cli._run([*asked, "--out", out]) == 0
    assert dict(anndata.read_h5ad(out).uns) == ABOUT
    assert cli._run(["check-submission", out, *also]) == 0
    assert "valid" in capsys.readouterr().out
    assert cli._run([*asked, "--out", str(tmp_path / "s.csv")]) == 2
    assert "has no place for 'dataset_id', 'method_id'" in capsys.readouterr().err
    assert not (tmp_path / "s.csv").exists()
    assert cli._run([*asked[:6], "--out", out]) == 0
    assert cli._run(["check-submission", out, *also]) == 0, "a warning is no error"
    assert "0 errors, 2 warnings" in capsys.readouterr().out


@pytest.mark.data
def test_the_command_line_passes_the_real_rows_and_genes(
    real, valid: Lines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids, like, _ = real
    ids.to_csv(tmp_path / "id_map.csv", index=False)
    path = tmp_path / "s.csv"
    path.write_text("\n".join(map(",".join, valid)) + "\n")
    command = [
        "check-submission",
        str(path),
        "--id-map",
        str(tmp_path / "id_map.csv"),
        "--like",
        str(like),
    ]
    assert cli._run(command) == 0
    assert "valid" in capsys.readouterr().out
    path.write_text("\n".join(map(",".join, valid[:-1])) + "\n")
    assert cli._run(command) == 2
    assert "id 254 is missing: Myeloid cells" in " ".join(capsys.readouterr().out.split())
