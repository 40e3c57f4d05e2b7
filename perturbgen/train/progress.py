"""The line that says how a run is doing."""

from __future__ import annotations

import logging
import resource
import sys
import time
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)

_LOG_EVERY = 10.0  # seconds between lines where there is no terminal


class Status:
    """A live line on a terminal (epoch, objective, samples/s, memory, time left), elsewhere a line now and then."""

    def __init__(self, epochs: int, unit: str = "cells") -> None:
        from rich.console import Console
        from rich.live import Live

        self.epochs, self.unit = epochs, unit
        self.began, self.logged, self.first = time.monotonic(), -_LOG_EVERY, None
        verbose = logging.getLogger("perturbgen").getEffectiveLevel() <= logging.INFO
        shown = verbose and sys.stderr.isatty()
        self.live = (
            Live("", console=Console(stderr=True), refresh_per_second=4, transient=True)
            if shown
            else None
        )

    def __enter__(self) -> Status:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def show(self, record: dict[str, Any]) -> None:
        """Say how an epoch went."""
        from rich.text import Text

        self.first = record["epoch"] if self.first is None else self.first
        text = self.line(record)
        now = time.monotonic() - self.began
        if self.live:
            self.live.update(Text(text, no_wrap=True, overflow="ellipsis"))  # folded, it would jump
        elif now - self.logged >= _LOG_EVERY:
            self.logged = now
            log.info("%s", text)

    def line(self, record: dict[str, Any]) -> str:
        """``epoch 12/200 · objective 812.3, held out 830.1 · 2,104 cells/s · 1.2 GB · 3 min left``."""
        done = record["epoch"] + 1
        parts = [f"epoch {done}/{self.epochs}", f"objective {_readable(record['train/objective'])}"]
        if "validation/objective" in record:
            parts[-1] += f", held out {_readable(record['validation/objective'])}"
        assert self.first is not None
        per_epoch = (time.monotonic() - self.began) / (done - self.first)
        left = per_epoch * (self.epochs - done)
        parts += [
            f"{record[f'{self.unit}_per_second']:,.0f} {self.unit}/s",
            f"{_memory_gb():.1f} GB",
            f"{_duration(left)} left at most",
        ]
        return " · ".join(parts)


def _readable(value: float) -> str:
    """One decimal, or four digits of a number under ten."""
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.4g}"


def _memory_gb() -> float:
    """The most memory that the process has had: of the GPU where one is used, else of the machine."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def _duration(seconds: float) -> str:
    """``40 s``, ``3 min`` or ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
