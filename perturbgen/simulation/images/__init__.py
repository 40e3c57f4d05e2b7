"""Tiny data in the exact formats of the real sets, with a planted truth, to try every verb on."""

from collections.abc import Callable
from pathlib import Path

from perturbgen.simulation.images import rxrx
from perturbgen.simulation.images.bbbc021 import ImageLayout, write_bbbc021
from perturbgen.simulation.images.rxrx import write_rxrx1

# By the name that users give; errors list the names in this order.
WRITERS: dict[str, Callable[..., Path]] = {"bbbc021": write_bbbc021, **rxrx.WRITERS}
