import logging

import pytest

from perturbgen.train.settings import LoopSettings, Schedule


def schedule(
    per_epoch: int = 5, epochs: int = 200, decay: str = "constant", **annealing
) -> Schedule:
    settings = LoopSettings.model_validate(
        {"annealing": annealing, "training": {"epochs": epochs, "decay": decay}}
    )
    return Schedule(settings, per_epoch)


def weights(steps: int, **annealing) -> list[float]:
    return [schedule(**annealing).weight(step) for step in range(steps)]


def test_linear_rises_evenly_and_reaches_its_weight_exactly():
    rising = weights(6, warmup=4, unit="steps", start=0.2, weight=1.0)
    assert rising == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert schedule(warmup=4, unit="steps", weight=0.3).weight(4) == 0.3


def test_epochs_count_their_batches():
    values = weights(11, warmup=2, unit="epochs")
    assert values == pytest.approx([min(1, step / 10) for step in range(11)])
    assert schedule(warmup=2, unit="epochs").warmup_epochs == 2
    assert schedule(warmup=7, unit="steps").warmup_epochs == 2


def test_cosine_is_slow_at_both_ends():
    values = weights(5, shape="cosine", warmup=4, unit="steps")
    assert values == pytest.approx([0, 0.1464466, 0.5, 0.8535534, 1])


def test_cyclic_rises_half_of_each_cycle_and_stays():
    values = weights(9, shape="cyclic", warmup=8, unit="steps", cycles=2)
    assert values == pytest.approx([0, 0.5, 1, 1, 0, 0.5, 1, 1, 1])


@pytest.mark.parametrize("annealing", [{"warmup": 0}, {"shape": "constant"}])
def test_without_a_warmup_the_weight_is_full_at_once(annealing):
    assert weights(3, **annealing) == [1, 1, 1]


@pytest.mark.parametrize(("epochs", "warned"), [(20, True), (21, False)])
def test_a_warmup_that_outlasts_the_run_is_said(caplog, epochs, warned):
    with caplog.at_level(logging.WARNING, logger="perturbgen"):
        schedule(epochs=epochs, warmup=20).warn_of_long_warmup()
    assert ("warm-up takes 100 steps" in caplog.text) == warned


def test_rates_fall_along_a_cosine():
    falling = schedule(per_epoch=5, epochs=2, decay="cosine")
    assert [falling.rate_factor(step) for step in (0, 5, 10, 12)] == pytest.approx(
        [1, 0.505, 0.01, 0.01]
    )
    assert schedule(epochs=2).rate_factor(7) == 1
