from pathlib import Path

import pytest

from perturbgen import cli


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("macseq", "macseq_plate"),
        pytest.param("kang", "kang_ifnb", marks=pytest.mark.slow),
        pytest.param("glioblastoma", "glioblastoma_panobinostat", marks=pytest.mark.slow),
    ],
)
def test_every_real_file_is_drawn(name: str, file: str, real_data: Path, tmp_path: Path) -> None:
    columns = Path(__file__).parents[2] / "experiments" / "columns" / f"{name}.toml"
    source = real_data / "counts" / f"{file}.h5ad"
    options = ["--columns", str(columns), "--out", str(tmp_path / "page.html")]
    assert cli._run(["data", "show", str(source), *options]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "Pseudobulk maps" in page
    assert ("Plates</h2>" in page) == (name == "macseq")


def test_a_wrong_suffix_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._run(["data", "show", str(tmp_path), "--out", "page.pdf"]) == 2
    assert "page.html" in capsys.readouterr().err
