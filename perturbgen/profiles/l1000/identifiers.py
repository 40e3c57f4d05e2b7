"""The grammar of CMap's ids: samples, signatures, perturbagens."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal

import pandas as pd

Level = Literal["samples", "signatures", "unknown"]

WELL: Final = re.compile(r"[A-P](0?[1-9]|1\d|2[0-4])")
SAMPLE: Final = re.compile(
    r"(?P<plate>(?P<project>[^_:]+)_(?P<cell_line>[^_:]+)_(?P<time>\d+(\.\d+)?)H_(?P<replicate>X[^_:]*))"
    r"(_(?P<batch>[^_:]+))?(_[^:]*)?:(?P<well>[A-P]\d{1,2})",
    re.IGNORECASE,
)
BRD: Final = re.compile(r"BRD-[A-Z]\d{8}")


def parse_samples(ids: Iterable[str]) -> pd.DataFrame:
    """What sample ids such as ``LJP005_A375_24H_X1_B19:A03`` say: plate, project, cell line, hours, replicate, well."""
    names = [*SAMPLE.groupindex]
    ids = list(ids)
    found = (SAMPLE.fullmatch(name) for name in ids)
    rows = [match.groupdict() if match else dict.fromkeys(names) for match in found]
    table = pd.DataFrame(rows, columns=names, index=pd.Index(ids, dtype=object), dtype=object)
    return table.assign(time=table["time"].astype(float))


def level_of(ids: Iterable[str]) -> Level:
    """Whether ids name samples (levels 1 to 4) or signatures (level 5), by how most of them end."""
    sample = signature = 0
    for name in ids:
        head, colon, tail = name.partition(":")
        if colon and WELL.fullmatch(tail):
            sample += 1
        elif colon and ("_" in head or ":" in tail):
            signature += 1
    if max(sample, signature) == 0:
        return "unknown"
    return "samples" if sample >= signature else "signatures"


def core_id(pert_id: object) -> str | None:
    """The perturbagen behind an id: a BRD id without salt and batch (13 characters), or the id itself."""
    if pert_id is None or pert_id != pert_id:
        return None
    text = str(pert_id).strip()
    match = BRD.match(text.upper())
    return match.group() if match else text or None
