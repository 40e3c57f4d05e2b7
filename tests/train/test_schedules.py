import logging

import pytest

from perturbgen.train.schedules import (
    annealed_weight,
    rate_factor,
    warmup_epochs,
    warn_of_long_warmup,
)
from perturbgen.train.settings import Annealing


def weights(annealing: Annealing, steps: int, per_epoch: int = 5) -> list[float]:
    return [annealed_weight(annealing, step, per_epoch) for step in range(steps)]


def test_linear_rises_evenly_and_reaches_its_weight_exactly():
    assert weights(Annealing(warmup=4, unit="steps", start=0.2, weight=1.0), 6) == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    )
    assert annealed_weight(Annealing(warmup=4, unit="steps", weight=0.3), 4, 5) == 0.3


def test_epochs_count_their_batches():
    annealing = Annealing(warmup=2, unit="epochs")
    assert weights(annealing, 11) == pytest.approx([min(1, step / 10) for step in range(11)])
    assert warmup_epochs(annealing, 5) == 2
    assert warmup_epochs(Annealing(warmup=7, unit="steps"), 5) == 2


def test_cosine_is_slow_at_both_ends():
    values = weights(Annealing(shape="cosine", warmup=4, unit="steps"), 5)
    assert values == pytest.approx([0, 0.1464466, 0.5, 0.8535534, 1])


def test_cyclic_rises_half_of_each_cycle_and_stays():
    values = weights(Annealing(shape="cyclic", warmup=8, unit="steps", cycles=2), 9)
    assert values == pytest.approx([0, 0.5, 1, 1, 0, 0.5, 1, 1, 1])


@pytest.mark.parametrize("annealing", [Annealing(warmup=0), Annealing(shape="constant")])
def test_without_a_warmup_the_weight_is_full_at_once(annealing):
    assert weights(annealing, 3) == [1, 1, 1]


@pytest.mark.parametrize(("epochs", "warned"), [(20, True), (21, False)])
def test_a_warmup_that_outlasts_the_run_is_said(caplog, epochs, warned):
    with caplog.at_level(logging.WARNING, logger="perturbgen"):
        warn_of_long_warmup(Annealing(warmup=20), 5, epochs)
    assert ("warm-up takes 100 steps" in caplog.text) == warned


def test_rates_fall_along_a_cosine():
    assert [rate_factor("cosine", step, 10) for step in (0, 5, 10, 12)] == pytest.approx(
        [1, 0.505, 0.01, 0.01]
    )
    assert rate_factor("constant", 7, 10) == 1
