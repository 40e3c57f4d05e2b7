"""Tiny data in the exact formats of the real sets, with a planted truth, to try every verb on."""

from collections.abc import Callable
from pathlib import Path

from perturbgen.simulate.images.bbbc021 import ImageLayout, write_bbbc021
from perturbgen.simulate.images.embeddings import EMBEDDINGS
from perturbgen.simulate.images.rxrx1 import write_rxrx1

_WRITERS: dict[str, Callable[..., Path]] = {
    "bbbc021": write_bbbc021,
    "rxrx1": write_rxrx1,
    **EMBEDDINGS,
}
# By the name that users give; errors list the names in this order.
WRITERS = dict(sorted(_WRITERS.items()))
