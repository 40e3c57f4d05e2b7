"""One door to every kind of profile: what a path holds is recognised by its files and their headers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perturbgen.core.errors import InputError
from perturbgen.core.tables import find_optional, read_header
from perturbgen.images import bbbc021, cellpainting, rxrx1, rxrx3, rxrx19
from perturbgen.profiles.table import Profiles, read_profiles

STREAMED = {
    "rxrx1": rxrx1.read_profiles,
    "rxrx19": rxrx19.read_profiles,
    "rxrx3": rxrx3.read_profiles,
}


def kind_of(path: str | Path) -> str:
    """``folder`` (ours), ``bbbc021``, ``rxrx1``, ``rxrx1-kaggle``, ``rxrx19``, ``rxrx3`` or ``table``."""
    path = Path(path)
    if not path.is_dir():
        return "table"
    if (path / "values.npy").exists():
        return "folder"
    for name, kind in (
        (bbbc021.IMAGES, "bbbc021"),
        (rxrx3.CORE, "rxrx3"),
        (rxrx3.FULL, "rxrx3"),
        ("train.csv", "rxrx1-kaggle"),
    ):
        if find_optional(path, name):
            return kind
    metadata = find_optional(path, "metadata.csv")
    if metadata:
        header = read_header(metadata)
        for column, kind in (("sirna_id", "rxrx1"), ("disease_condition", "rxrx19")):
            if column in header:
                return kind
    raise InputError(
        f"{path} holds no profiles that are known here",
        expected="a profile folder, BBBC021, RxRx1, RxRx19a/b, RxRx3(-core), or a csv/parquet with Metadata_ columns",
    )


@contextmanager
def opened(path: str | Path) -> Iterator[Profiles]:
    """The profiles of a path; embeddings that are streamed lie in a temporary folder while they are open."""
    kind = kind_of(path)
    if kind in STREAMED:
        with tempfile.TemporaryDirectory() as folder:
            yield STREAMED[kind](path, Path(folder) / "profiles")[0]
    elif kind == "rxrx1-kaggle":
        raise InputError(
            f"{path} has plate maps but no profiles",
            expected="embeddings.csv beside metadata.csv",
            fix="perturbgen images check reads the plate maps",
        )
    else:
        yield {
            "folder": read_profiles,
            "bbbc021": bbbc021.read_profiles,
            "table": cellpainting.read_profiles,
        }[kind](path)
