"""A run that is there is not trained again; one of other settings or data is."""

from pathlib import Path

from perturbgen.train import run as running


def test_a_finished_run_of_the_same_settings_is_taken(settings, tmp_path: Path) -> None:
    first = running.train_once(settings(), runs=tmp_path / "runs", accelerator="cpu")
    before = (first / "metrics.jsonl").read_text()
    assert running.train_once(settings(), runs=tmp_path / "runs", accelerator="cpu") == first
    assert (first / "metrics.jsonl").read_text() == before
    assert len(list((tmp_path / "runs").glob("0*"))) == 1


def test_other_settings_or_other_data_are_trained_anew(settings, cells, cells_file: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first = running.train_once(settings(), runs=runs, accelerator="cpu")
    second = running.train_once(settings("model.latent=3"), runs=runs, accelerator="cpu")
    cells[:80].copy().write_h5ad(cells_file)
    third = running.train_once(settings(), runs=runs, accelerator="cpu")
    assert len({first, second, third}) == 3


def test_a_folder_without_a_checkpoint_is_left_alone(settings, tmp_path: Path) -> None:
    (tmp_path / "runs" / "0001-other").mkdir(parents=True)
    run = running.train_once(settings(), runs=tmp_path / "runs", accelerator="cpu")
    assert run.name.startswith("0002-")
