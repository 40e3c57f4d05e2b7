"""Tiny data in the exact formats of the real sets, with a planted truth, to try every verb on."""

from collections.abc import Callable
from pathlib import Path

from perturbgen.simulate.images.bbbc021 import ImageLayout, write_bbbc021
from perturbgen.simulate.images.embeddings import (
    write_cellpainting,
    write_rxrx3,
    write_rxrx19a,
    write_rxrx19b,
)
from perturbgen.simulate.images.rxrx1 import write_rxrx1

WRITERS: dict[str, Callable[..., Path]] = {
    "bbbc021": write_bbbc021,
    "cellpainting": write_cellpainting,
    "rxrx1": write_rxrx1,
    "rxrx19a": write_rxrx19a,
    "rxrx19b": write_rxrx19b,
    "rxrx3": write_rxrx3,
}

__all__ = [
    "WRITERS",
    "ImageLayout",
    "write_bbbc021",
    "write_cellpainting",
    "write_rxrx1",
    "write_rxrx3",
    "write_rxrx19a",
    "write_rxrx19b",
]
