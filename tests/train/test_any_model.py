"""The loop trains what is no model of counts: any feed, any model, any judge."""

import errno
import json
import threading
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from perturbgen.models.base import Trainable
from perturbgen.train.board import Board, _lost_curves
from perturbgen.train.loop import Training, _DivergenceError
from perturbgen.train.run import _carry_out, launch
from perturbgen.train.settings import LoopSettings, adamw


class Points(NamedTuple):
    index: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor


class PointFeed:
    """Ten points on a line, five in a batch."""

    unit = "points"

    def __init__(self) -> None:
        self.x = torch.linspace(-1, 1, 10)[:, None]

    def __len__(self) -> int:
        return 10

    def steps(self, ranks):
        return 2

    def total(self, batch):
        return 5

    def epoch(self, epoch, *, skip=0, rank=0, ranks=1):
        order = torch.from_numpy(np.random.default_rng(epoch).permutation(10))
        for start in range(skip * 5, 10, 5):
            index = order[start : start + 5]
            yield Points(index, self.x[index], 3 * self.x[index, 0])

    def once(self):
        yield Points(torch.arange(10), self.x, 3 * self.x[:, 0])

    def names(self, index):
        return [f"p{i}" for i in index.tolist()]

    def shape(self, size):
        return f"{size} points"


class Line(Trainable):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Linear(1, 1)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        self.steps: list[int] = []

    def forward(self, batch, draws):
        return {"error": (self.slope(batch.x)[:, 0] - batch.y).square()}

    def advance(self, step):
        self.steps.append(step)


def make(run, *, judge=None, epochs=60) -> Training:
    run.mkdir(exist_ok=True)
    settings = LoopSettings.model_validate(
        {"training": {"epochs": epochs, "batch_size": 5}, "stopping": {}}
    )
    model = Line()
    return Training(
        run,
        settings,
        train=PointFeed(),
        validation=PointFeed(),
        model=model,
        judge=judge,
        optimisers=[adamw((model.parameters(), 0.1, 0.0))],
        fabric=launch(settings.training, accelerator="cpu"),
    )


def test_a_line_is_learned_and_its_terms_are_the_objective(tmp_path):
    training = make(tmp_path / "run")
    _carry_out(training, lambda epoch: Board(training.run, training.settings, epoch=epoch))
    assert training.model.slope.weight.item() == pytest.approx(3, abs=0.05)
    assert training.model.steps == list(range(120))
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows[-1]["validation/objective"] == pytest.approx(rows[-1]["validation/error"])
    assert "points_per_second" in rows[0]


def test_a_judge_decides_which_model_is_kept(tmp_path):
    slopes: list[float] = []

    def judge(model):
        slopes.append(model.slope.weight.item())
        return {"objective": abs(slopes[-1] - 1.5), "slope": slopes[-1]}

    training = make(tmp_path / "run", judge=judge)
    training.fit()
    state = training.state
    assert state.best_epoch == int(np.argmin(np.abs(np.array(slopes) - 1.5)))
    kept = torch.load(tmp_path / "run/checkpoint/best.pt", weights_only=True)["model"][
        "slope.weight"
    ].item()
    assert kept == slopes[state.best_epoch]


def test_a_restored_run_goes_on_as_one_that_never_stopped(tmp_path):
    whole = make(tmp_path / "whole", epochs=6)
    whole.fit()
    make(tmp_path / "part", epochs=3).fit()
    rest = make(tmp_path / "part", epochs=6)
    rest.restore()
    rest.fit()
    assert torch.equal(rest.model.slope.weight, whole.model.slope.weight)
    assert rest.model.steps == list(range(6, 12))


def test_messages_name_the_samples(tmp_path):
    training = make(tmp_path / "run")
    training.train.x[3] = float("nan")
    with pytest.raises(_DivergenceError, match=r"'error'.* is not finite; points 'p"):
        training.fit()


def test_a_full_disk_costs_curves_a_warning_and_other_errors_of_threads_are_shown(
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threading, "excepthook", _lost_curves)

    def failing(error: Exception) -> None:
        raise error

    for error in (
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "a broken disk"),
    ):
        thread = threading.Thread(target=failing, args=(error,))
        thread.start()
        thread.join()
    assert "curves and pictures are lost: No space left on device" in caplog.text
    shown = capsys.readouterr().err
    assert "a broken disk" in shown
    assert "No space" not in shown
