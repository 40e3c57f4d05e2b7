"""What is said of long work where there is no terminal."""

import logging

import pytest

from perturbgen.core import console
from perturbgen.core.console import duration, progress, track


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test moves on."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def _work(clock: list[float], steps: int, seconds: float) -> None:
    with progress("counting", steps) as tick:
        for _ in range(steps):
            clock[0] += seconds
            tick()


def test_work_of_more_than_a_minute_is_forecast_and_then_followed(clock, caplog):
    with caplog.at_level(logging.INFO, logger="perturbgen"):
        _work(clock, 100, 2.0)
    said = [record.message for record in caplog.records]
    assert said[0] == "counting: about 3 min"  # after two of a hundred steps
    assert said[1] == "counting: 17%, about 3 min left"
    assert len(said) == 1 + 6, "and then every half minute"


def test_a_slow_first_step_is_no_forecast(clock, caplog):
    """A compiler at work in the first of 60 steps made 41 minutes of what took three."""
    with caplog.at_level(logging.INFO, logger="perturbgen"), progress("drawing", 60) as tick:
        for seconds in (40, *[2] * 59):
            clock[0] += seconds
            tick()
    assert caplog.records[0].message == "drawing: about 3 min"


def test_steps_of_minutes_are_forecast_from_the_first(clock, caplog):
    with caplog.at_level(logging.INFO, logger="perturbgen"):
        _work(clock, 3, 100.0)
    assert caplog.records[0].message == "counting: about 5 min"


def test_short_work_and_quiet_work_are_silent(clock, caplog):
    with caplog.at_level(logging.INFO, logger="perturbgen"):
        _work(clock, 100, 0.5)
        assert list(track([1, 2], "counting")) == [1, 2]
    with caplog.at_level(logging.ERROR, logger="perturbgen"):
        _work(clock, 100, 2.0)
    assert caplog.records == []


def test_work_of_unknown_length_has_no_forecast(clock, caplog):
    with caplog.at_level(logging.INFO, logger="perturbgen"), progress("reading") as tick:
        clock[0] += 1000
        tick()
    assert caplog.records == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(41.4, "41 s"), (240, "4 min"), (5399, "90 min"), (5400, "1.5 h")]
)
def test_a_time_is_said_as_people_say_it(seconds, text):
    assert duration(seconds) == text
