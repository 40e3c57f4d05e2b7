"""What an unlucky user types to score."""

from perturbgen.cli import _run as command


def test_a_misspelt_statistic_is_told_whatever_the_files_are(capsys):
    assert command(["score", "truth.csv", "zeros.csv", "--statistic", "sign_log10_p"]) == 2
    assert "did you mean 'signed_log10_p'?" in capsys.readouterr().err


def test_predictions_without_a_column_of_labels_are_told_so_and_not_that_rows_are_doubled(
    tmp_path, capsys
):
    truth = "cell_type,compound,g1,g2\nB,x,1,2\nT,x,3,4\n"
    (tmp_path / "truth.csv").write_text(truth)
    (tmp_path / "short.csv").write_text(
        truth.replace("cell_type,", "").replace("B,", "").replace("T,", "")
    )
    assert command(["score", str(tmp_path / "truth.csv"), str(tmp_path / "short.csv")]) == 2
    assert "those of the truth (cell_type, compound)" in capsys.readouterr().err
