"""While a run trains: the line that says how it is doing, and Ctrl-C between two steps."""

from __future__ import annotations

import logging
import resource
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from perturbgen.core.console import duration

log = logging.getLogger(__name__)

_LOG_EVERY = 10.0  # seconds between lines where there is no terminal
_STEPS_TRIED, _TRIED, _LONG = 10, 3.0, 60.0  # steps and seconds before a forecast; seconds


class Progress:
    """A live line on a terminal: epoch, objective, speed, memory, time left; else in the log.

    While it is entered, the first SIGINT or SIGTERM is only kept in ``asked``; a second one stops.
    """

    def __init__(self, epochs: int, unit: str) -> None:
        from rich.console import Console
        from rich.live import Live

        self.epochs, self.unit = epochs, unit
        self.began, self.logged = time.monotonic(), -_LOG_EVERY
        self.first: int | None = None
        self.asked = 0
        self.steps, self.forecast = 0, False
        self.warm = self.began  # when the first step was over
        self._before: dict[int, Any] = {}
        self.live = None
        verbose = logging.getLogger("perturbgen").getEffectiveLevel() <= logging.INFO
        if verbose and sys.stderr.isatty():
            self.live = Live("", console=Console(stderr=True), refresh_per_second=4, transient=True)

    def __enter__(self) -> Progress:
        # Python sets signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = number

    def step(self, left: int) -> None:
        """After the first steps of a run, ``left`` being what is left of them: how long it takes.

        That is said once, if it is over a minute; what is done between epochs is not in it. The
        first step, in which libraries are loaded and code is compiled, may take as long as hundreds
        of others, and foretells nothing.
        """
        if self.forecast:
            return
        self.steps += 1
        now = time.monotonic()
        if self.steps == 1:
            self.warm = now
        steps, spent = self.steps - 1, now - self.warm
        if steps < _STEPS_TRIED or spent < _TRIED:
            return
        self.forecast = True
        whole = now - self.began + spent * left / steps
        if whole > _LONG:
            each = duration(spent / steps) if spent > steps else "under a second"
            log.info(
                "about %s at most for %d steps, %s each; it may stop before",
                duration(whole),
                left + self.steps,
                each,
            )

    def show(self, record: dict[str, Any]) -> None:
        """Say how an epoch went."""
        from rich.text import Text

        if self.first is None:  # of a resumed run not 0, and time counts from there
            self.first = int(record["epoch"])
        text = self._line(record, self.first)
        now = time.monotonic() - self.began
        if self.live:
            self.live.update(Text(text, no_wrap=True, overflow="ellipsis"))  # folded, it would jump
        elif now - self.logged >= _LOG_EVERY:
            self.logged = now
            log.info("%s", text)

    def _line(self, record: dict[str, Any], first: int) -> str:
        """``epoch 12/200 · objective 812.3, withheld 830.1 · 2,104 cells/s · 1.2 GB · ...``."""
        done = record["epoch"] + 1
        objective = f"objective {_readable(record['train/objective'])}"
        if "validation/objective" in record:
            objective += f", withheld {_readable(record['validation/objective'])}"
        left = (time.monotonic() - self.warm) / (done - first) * (self.epochs - done)
        speed = f"{record[f'{self.unit}_per_second']:,.0f} {self.unit}/s"
        memory = f"{_peak_memory() / 1e9:.1f} GB"
        parts = (
            f"epoch {done}/{self.epochs}",
            objective,
            speed,
            memory,
            f"{duration(left)} left at most",
        )
        return " · ".join(parts)


def _readable(value: float) -> str:
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.4g}"


def _peak_memory() -> float:
    """The most bytes that the process has had: of the GPU where one is used, else in all."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)  # Linux counts kilobytes
