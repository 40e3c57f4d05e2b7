"""What all tests of this room need."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def same_logger() -> Iterator[None]:
    """The command line sets the log's handlers and level for its process; here tests share one."""
    logger = logging.getLogger("perturbgen")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
