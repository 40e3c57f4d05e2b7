"""What settings leave to us: decided once, said, stored with the run."""

import logging
import tomllib
from pathlib import Path

import pytest

from perturbgen.core.errors import ConfigError
from perturbgen.train import RunSettings, train, train_once
from perturbgen.train.automatic import fit_length, fit_machine, say_precision
from perturbgen.train.run import launch
from perturbgen.train.settings import LoopSettings, LoopTraining

pytestmark = pytest.mark.usefixtures("no_pictures")


def _asked(kind: str = "nbvae", **sections) -> RunSettings:
    base = {"data": {"path": "x.h5ad"}, "model": {"kind": kind}, **sections}
    return RunSettings.load(base=base)


@pytest.mark.parametrize(
    ("kind", "cells", "epochs"),
    [
        ("nbvae", 500, 400),  # 4 steps an epoch: never more than 400 of them
        ("nbvae", 22_000, 174),  # 172 steps: about 30,000 in all
        ("nbvae", 1_000_000, 10),  # 7,813 steps: never fewer than 10 epochs
        ("dgd", 1_000_000, 50),  # of a DGD, whose cells move once an epoch, 50
    ],
)
def test_the_length_follows_the_number_of_cells(kind, cells, epochs, caplog):
    with caplog.at_level(logging.INFO, logger="perturbgen"):
        found = fit_length(_asked(kind), cells, "cells")
    assert found.training.epochs == epochs
    assert f"{epochs} epochs of" in caplog.text
    assert f"{cells:,} cells" in caplog.text
    assert fit_length(found, 7, "cells") == found, "what is settled stays"


def test_a_length_that_was_asked_for_is_kept_in_silence(caplog):
    with caplog.at_level(logging.INFO, logger="perturbgen"):
        found = fit_length(_asked(training={"epochs": 7}), 10_000, "cells")
    assert found.training.epochs == 7
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("epochs", "annealing", "warmup", "said"),
    [
        (200, {}, 20, ""),
        (12, {}, 3, ""),
        (2, {}, 0, ""),
        (12, {"unit": "steps"}, 30, ""),  # a quarter of 12 epochs of 10 steps
        (12, {"warmup": 5}, 5, ""),
        (12, {"warmup": 20}, 6, "half of the run, 6"),
        (12, {"warmup": 120, "unit": "steps"}, 60, "half of the run, 60"),
        (12, {"warmup": 20, "shape": "constant"}, 20, ""),
    ],
)
def test_a_warmup_leaves_half_of_the_run_at_full_weight(epochs, annealing, warmup, said, caplog):
    asked = LoopSettings.model_validate(
        {"annealing": annealing, "training": {"epochs": epochs, "batch_size": 10}}
    )
    assert fit_length(asked, 100, "samples").annealing.warmup == warmup
    assert (said in caplog.text) if said else caplog.text == ""


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_the_precision_follows_the_machine_and_is_said(monkeypatch, caplog, fast, precision):
    monkeypatch.setattr(
        "perturbgen.train.automatic.fast_bf16", lambda _: (fast, "of what it is made of")
    )
    with caplog.at_level(logging.INFO, logger="perturbgen"):
        found = fit_machine(LoopTraining(), accelerator="cpu")
        assert fit_machine(found, accelerator="cpu") == found
    assert found.precision == precision
    assert caplog.text.count("of what it is made of") == 1


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr("perturbgen.train.automatic.cores", lambda **_: 7)
    assert fit_machine(LoopTraining(), accelerator="cpu").threads == 7
    assert fit_machine(LoopTraining(), accelerator="cpu", ranks=2).threads == 3
    assert fit_machine(LoopTraining(), accelerator="cpu", ranks=9).threads == 1
    assert fit_machine(LoopTraining(threads=2), accelerator="cpu").threads == 2


def test_a_run_keeps_what_was_chosen_and_goes_on_with_it_elsewhere(
    settings, tmp_path: Path, monkeypatch, caplog
):
    from perturbgen.train import resume

    run = train(settings(), runs=tmp_path, accelerator="cpu")
    stored = tomllib.loads((run / "config.toml").read_text())
    assert stored["training"]["precision"] == "32-true"
    assert stored["training"]["threads"] >= 1
    monkeypatch.setattr("perturbgen.train.automatic.fast_bf16", lambda _: (True, ""))
    with caplog.at_level(logging.INFO, logger="perturbgen"):
        resume(run, ["training.epochs=4"], accelerator="cpu")
    assert "goes on in it" in caplog.text
    again = tomllib.loads((run / "config.toml").read_text())
    assert again["training"] == {**stored["training"], "epochs": 4}


def test_a_dgd_that_was_trained_before_warmups_were_automatic_is_read():
    assert _asked("dgd", annealing={"warmup": 20}).training.epochs == "auto"
    with pytest.raises(ConfigError, match="a dgd has none"):
        _asked("dgd", annealing={"warmup": 19})


def test_a_precision_that_is_slow_here_is_said(monkeypatch, caplog):
    monkeypatch.setattr("perturbgen.train.automatic.fast_bf16", lambda _: (False, "no silicon"))
    say_precision(LoopTraining(precision="bf16-mixed", threads=1), accelerator="cpu")
    assert "no silicon" in caplog.text


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_lightning_does_not_say_the_precision_a_second_time(precision):
    said: list[str] = []

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    about = logging.getLogger("lightning_fabric.utilities.rank_zero")
    heard = Heard()
    about.addHandler(heard)
    try:
        launch(LoopTraining(precision=precision, threads=1), accelerator="cpu")
        about.warning("a word of Lightning's about anything else")
    finally:
        about.removeHandler(heard)
    assert said == ["a word of Lightning's about anything else"]


def test_a_run_whose_length_was_left_to_us_is_taken_again(settings, tmp_path: Path):
    asked = settings("annealing.warmup=9")  # of three epochs: shortened
    first = train_once(asked, runs=tmp_path, accelerator="cpu")
    assert train_once(asked, runs=tmp_path, accelerator="cpu") == first
    assert train_once(settings("training.epochs=2"), runs=tmp_path, accelerator="cpu") != first


def test_a_long_training_is_forecast_after_its_first_steps(monkeypatch, caplog):
    from perturbgen.train import progress

    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for seconds, said in ((0.5, 1), (0.01, 0)):
        caplog.clear()
        line = progress.Progress(10, "cells")
        with caplog.at_level(logging.INFO, logger="perturbgen"):
            for left in range(479, -1, -1):
                now[0] += seconds
                line.step(left)
        assert caplog.text.count("about 4 min at most for 480 steps") == said


def test_a_slow_first_step_foretells_nothing(monkeypatch, caplog):
    from perturbgen.train import progress

    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    line = progress.Progress(10, "cells")
    with caplog.at_level(logging.INFO, logger="perturbgen"):
        for left in range(1199, -1, -1):  # 17 seconds, the first five of which load and compile
            now[0] += 0.01 if left < 1199 else 5.0
            line.step(left)
    assert "about" not in caplog.text
