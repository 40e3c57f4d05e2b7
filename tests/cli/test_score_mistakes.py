"""What an unlucky user types to score."""

from perturbgen.cli import run as command


def test_a_misspelt_statistic_is_told_whatever_the_files_are(capsys):
    assert command(["score", "truth.csv", "zeros.csv", "--statistic", "sign_log10_p"]) == 2
    assert "did you mean 'signed_log10_p'?" in capsys.readouterr().err
