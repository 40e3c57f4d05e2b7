"""The loop: repeatable, resumable, shareable, and it stops where it should."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from perturbgen.core.errors import ConfigError, SchemaError, StorageError
from perturbgen.train import load_run, resume, train
from perturbgen.train.checkpoint import save_state
from perturbgen.train.loop import Training, _DivergenceError

pytestmark = pytest.mark.usefixtures("no_pictures")

KINDS = ["nbvae", "dgd", "gaussian_vae"]


def state_of(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoint" / f"{name}.pt", weights_only=True)["model"]


def assert_equal_states(one: Path, other: Path, *, name: str = "last", atol: float = 0.0) -> None:
    left, right = state_of(one, name), state_of(other, name)
    assert list(left) == list(right)
    for key, value in left.items():
        torch.testing.assert_close(
            value, right[key], atol=atol, rtol=0, msg=lambda text, key=key: f"{key}: {text}"
        )


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_times(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "cells_per_second"} for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_gives_one_result(settings, tmp_path, kind):
    runs = [
        train(settings(f"model.kind={kind}"), runs=tmp_path / f"runs{i}", accelerator="cpu")
        for i in range(2)
    ]
    assert_equal_states(*runs)
    assert without_times(records(runs[0])) == without_times(records(runs[1]))
    other = train(
        settings(f"model.kind={kind}", "seed=1"), runs=tmp_path / "other", accelerator="cpu"
    )
    assert records(other)[0]["train/objective"] != records(runs[0])[0]["train/objective"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [2, 9], ids=["in the first epoch", "in the second"])
def test_an_interrupted_and_resumed_run_equals_one_that_never_stopped(
    settings, tmp_path, monkeypatch, kind, stop
):
    options = (
        (f"model.kind={kind}", "model.decoder.dropout=0.2")
        if kind != "gaussian_vae"
        else (f"model.kind={kind}",)
    )
    whole = train(settings(*options), runs=tmp_path / "whole", accelerator="cpu")
    step = Training.step

    def interrupting(self, batch):
        found = step(self, batch)
        if self.state.step == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return found

    monkeypatch.setattr(Training, "step", interrupting)
    with pytest.raises(KeyboardInterrupt):
        train(settings(*options), runs=tmp_path / "broken", accelerator="cpu")
    monkeypatch.setattr(Training, "step", step)
    broken = next((tmp_path / "broken").iterdir())
    resume(broken, [], accelerator="cpu")
    assert_equal_states(whole, broken)
    assert_equal_states(whole, broken, name="best")
    assert without_times(records(whole)) == without_times(records(broken))


def test_a_finished_run_can_be_trained_longer(settings, tmp_path):
    long = train(settings("training.epochs=5"), runs=tmp_path / "long", accelerator="cpu")
    short = train(settings(), runs=tmp_path / "short", accelerator="cpu")
    resume(short, [], accelerator="cpu")  # nothing is left to do
    assert len(records(short)) == 3
    resume(short, ["training.epochs=5"], accelerator="cpu")
    assert_equal_states(long, short)
    with pytest.raises(ConfigError, match="changes what was trained"):
        resume(short, ["model.latent=3"], accelerator="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nbvae", "dgd"])
def test_two_processes_equal_one(settings, tmp_path, kind):
    """The same global batches and random numbers; sums in another order, hence 1e-4 after twelve
    steps of Adam."""
    config = tmp_path / "config.toml"
    config.write_text(
        settings(f"model.kind={kind}", "training.epochs=2", "training.batch_size=12").to_toml()
    )
    for devices in (1, 2):
        command = [sys.executable, "-m", "perturbgen", "train", str(config), "--device", "cpu"]
        command += ["--devices", str(devices), "--runs", str(tmp_path / f"runs{devices}")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    one, two = (next((tmp_path / f"runs{devices}").iterdir()) for devices in (1, 2))
    assert_equal_states(one, two, atol=1e-4)
    assert len(list((tmp_path / "runs2").iterdir())) == 1
    assert records(one)[-1]["train/objective"] == pytest.approx(
        records(two)[-1]["train/objective"], rel=1e-5
    )


@pytest.mark.slow
def test_where_only_the_first_process_fails_the_other_ends_too(settings, tmp_path):
    config, script = tmp_path / "config.toml", tmp_path / "first.py"
    config.write_text(settings("training.batch_size=12").to_toml())
    script.write_text("""
import sys
from perturbgen.cli import _run
from perturbgen.core.errors import StorageError
from perturbgen.train import heldout
def full(*_, **__):
    raise StorageError("the disk is full")
heldout.CellBoard = full
sys.exit(_run(sys.argv[1:]))
""")
    command = [
        sys.executable,
        str(script),
        "train",
        str(config),
        "--device",
        "cpu",
        "--devices",
        "2",
    ]
    # ends with the last process that holds its standard error
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 1
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr


def test_patience_counts_after_the_warmup_only(settings, tmp_path, monkeypatch):
    values = iter([5.0, 4.0, 9.0, 9.0, 9.0, 3.0, 9.0, 9.0, 9.0, 9.0])
    monkeypatch.setattr(Training, "validate", lambda self: {"validation/objective": next(values)})
    plan = settings("annealing.warmup=4", "stopping.patience=2", "training.epochs=10")
    run = train(plan, runs=tmp_path / "runs", accelerator="cpu")
    # the bad epochs 2 and 3 lie in the warm-up, 4 is one bad epoch, 5 is the best
    assert len(records(run)) == 8
    assert torch.load(run / "checkpoint/best.pt", weights_only=True)["epoch"] == 5


def test_models_are_selected_by_the_full_weight_objective(settings, tmp_path):
    run = train(
        settings("annealing.warmup=3", "annealing.weight=0.5"),
        runs=tmp_path / "runs",
        accelerator="cpu",
    )
    for record in records(run):
        for part in ("train", "validation"):
            full = record[f"{part}/reconstruction"] + 0.5 * record[f"{part}/kl"]
            assert record[f"{part}/objective"] == pytest.approx(full, rel=1e-9)


def test_a_loss_that_is_no_number_stops_with_step_cells_and_cause(settings, tmp_path, monkeypatch):
    add = Training.add

    def poison(self, values):
        add(self, values)
        with torch.no_grad():
            next(self.model.parameters()).fill_(torch.nan)

    monkeypatch.setattr(Training, "add", poison)
    with pytest.raises(_DivergenceError, match=r"step 1 \(epoch 0\)") as caught:
        train(settings(), runs=tmp_path / "runs", accelerator="cpu")
    assert "cells 'c" in str(caught.value)
    assert "parameters that are not finite" in str(caught.value)


def test_out_of_memory_says_which_batch_would_fit(settings, tmp_path, monkeypatch):
    def exhausted(self, batch):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
        )

    monkeypatch.setattr(Training, "step", exhausted)
    with pytest.raises(StorageError, match="out of memory") as caught:
        train(settings(), runs=tmp_path / "runs", accelerator="cpu")
    assert "training.batch_size=8" in str(caught.value)


def test_other_errors_of_torch_keep_their_own_words(settings, tmp_path, monkeypatch):
    def broken(self, batch):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Training, "step", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(settings(), runs=tmp_path / "runs", accelerator="cpu")


def test_a_full_disk_leaves_the_checkpoint_before(settings, tmp_path, monkeypatch):
    run = train(settings(), runs=tmp_path / "runs", accelerator="cpu")
    before = state_of(run)

    def full(state, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError(
            "[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file"
        )

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match="no space left"):
        save_state(run, "last", {})
    assert state_of(run).keys() == before.keys()
    assert not list((run / "checkpoint").glob("*.part*"))


def test_other_cells_are_refused_on_resume(settings, tmp_path, cells, cells_file):
    run = train(settings("model.kind=dgd"), runs=tmp_path / "runs", accelerator="cpu")
    cells[:80].write_h5ad(cells_file)
    with pytest.raises(SchemaError, match=r"gone: 'c80'"):
        resume(run, ["training.epochs=5"], accelerator="cpu")


def test_it_trains_outside_the_main_thread(settings, tmp_path):
    thread = threading.Thread(
        target=train, args=(settings(),), kwargs={"runs": tmp_path / "r", "accelerator": "cpu"}
    )
    thread.start()
    thread.join()
    assert load_run(next((tmp_path / "r").iterdir())).card.kind == "nbvae"


def test_without_validation_cells_the_training_objective_decides(settings, tmp_path):
    run = train(settings("data.validation=0"), runs=tmp_path / "runs", accelerator="cpu")
    assert "validation/objective" not in records(run)[0]
    assert load_run(run).card.n_held_out == 0
