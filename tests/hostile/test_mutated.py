"""Files with bytes that changed, are missing or were added: a clear error or the same result.

Never a crash, a hang, an error that only Python understands, or other numbers where what we write
has a checksum. Tests read five hundred; what becomes of more is printed by::

    HOSTILE_FILES=20000 python -m pytest -s tests/hostile/test_mutated.py
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import PerturbgenError
from perturbgen.core.tables import read_frame
from perturbgen.data import read_h5ad
from perturbgen.images.fields import read_field
from perturbgen.l1000 import GctxFile
from perturbgen.profiles import read_profiles

FILES = int(os.environ.get("HOSTILE_FILES", "500"))
BATCH = 25  # files read by one child
SECONDS = 10.0  # for one file
pytestmark = pytest.mark.slow


def _digest(*arrays: Any, names: Any = ()) -> str:
    texts = "\n".join(map(str, names))
    return repr([(np.shape(a), float(np.nansum(np.asarray(a, float)))) for a in arrays]) + texts


def _h5ad(path: Path) -> str:
    adata = read_h5ad(path)
    names = [*adata.obs_names, *adata.var_names, *adata.obs.astype(str).to_numpy().ravel()]
    return _digest(adata.X.data, adata.X.indices, adata.X.indptr, names=names)


def _parquet(path: Path) -> str:
    frame = read_frame(path, columns=["cell_type", "sm_name"])
    return _digest(frame.select_dtypes("number"))


def _gctx(path: Path) -> str:
    with GctxFile(path) as file:
        texts = (file.obs.to_csv(), file.var.to_csv())
        return repr([zlib.crc32(x) for x in (file.read(), *map(str.encode, texts))])


def _csv(path: Path) -> str:
    frame = read_frame(path, columns=["id"])
    return _digest(frame.select_dtypes("number"))


def _folder(path: Path) -> str:
    """A folder of profiles of which one file changed."""
    return _digest(read_profiles(path.parent).values)


def _image(path: Path) -> str:
    # of the bytes, so that pixels which change places are others
    return repr(zlib.crc32(read_field({1: path}, [1]).tobytes()))


# the file of the world, its reader, and whether other numbers can be told from the right ones
READERS: dict[str, tuple[str, Callable[[Path], str], bool]] = {
    "h5ad": ("counts.h5ad", _h5ad, True),
    "parquet": ("sim/de_train.parquet", _parquet, True),
    "gctx": ("screen/SIM_Level4_ZSPCQNORM_x80.gctx", _gctx, True),
    "csv": ("sim/sample_submission.csv", _csv, False),
    "csv.gz": ("submission.csv.gz", _csv, True),
    "profiles": ("bbbc021.profiles/meta.parquet", _folder, True),
    "png": ("rxrx1/images/*/Plate1/*_w1.png", _image, True),
    "tiff": ("bbbc021/**/*.tif", _image, False),
}


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """One change of a kind that disks, copies and attackers make."""
    data = bytearray(content)
    at, size = int(rng.integers(len(data))), int(rng.integers(1, 64))
    kind = rng.integers(7)
    if kind == 0:
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data[at : at + size] = rng.bytes(min(size, len(data) - at))
    elif kind == 2:
        del data[at : at + size]
    elif kind == 3:
        data[at:at] = rng.bytes(size)
    elif kind == 4:
        del data[at:]
    elif kind == 5:
        data[at : at + size] = bytes(min(size, len(data) - at))
    else:
        # most of a file's structure is in its beginning
        head = int(rng.integers(min(4096, len(data))))
        data[head] = int(rng.integers(256))
    return bytes(data)


def outcome(read: Callable[[Path], str], path: Path, whole: str) -> str:
    """What became of a file."""
    try:
        return "same" if read(path) == whole else "other numbers"
    except PerturbgenError:
        return "clear error"
    except Exception:  # noqa: BLE001
        return "not explained: " + traceback.format_exc()[-700:]


def in_child(
    work: Callable[[Callable[[str], None]], None], wanted: int, seconds: float
) -> list[str]:
    """What a child tells, line by line; what it was at when it died is a crash or a hang."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        with os.fdopen(write_end, "w") as pipe:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            warnings.simplefilter("ignore")  # as the command line does
            work(lambda text: print(json.dumps(text), file=pipe, flush=True))
        os._exit(0)
    os.close(write_end)
    os.set_blocking(read_end, False)
    said, last, buffer = [], time.monotonic(), b""
    while True:
        try:
            piece = os.read(read_end, 65536)
        except BlockingIOError:
            if time.monotonic() - last > seconds:
                os.kill(child, signal.SIGKILL)
                said.append("hang")
                break
            time.sleep(0.005)
            continue
        if not piece:
            break
        last, buffer = time.monotonic(), buffer + piece
        *lines, buffer = buffer.split(b"\n")
        said += [json.loads(line) for line in lines]
    os.close(read_end)
    _, status = os.waitpid(child, 0)
    if len(said) < wanted and said[-1:] != ["hang"]:
        said.append(f"crash {os.waitstatus_to_exitcode(status)}")
    return said


@pytest.mark.parametrize("kind", READERS)
def test_a_changed_file_is_an_error_or_the_same(kind: str, world: Path, tmp_path: Path) -> None:
    name, read, checked = READERS[kind]
    source = min(world.glob(name), default=world / name)
    if kind == "csv.gz":
        source = tmp_path / "whole.csv.gz"
        pd.read_csv(world / "sim" / "sample_submission.csv").to_csv(source, index=False)
    place = tmp_path / "files"
    place.mkdir()
    for other in source.parent.iterdir() if kind == "profiles" else []:
        (place / other.name).write_bytes(other.read_bytes())
    path = place / source.name
    content, whole = source.read_bytes(), read(source)
    rng = np.random.default_rng(7)
    counts: Counter[str] = Counter()
    bad: list[str] = []
    left = -(-FILES // len(READERS))
    while left > 0:
        changed = [mutate(content, rng) for _ in range(min(BATCH, left))]

        def work(say: Callable[[str], None], changed: list[bytes] = changed) -> None:
            for data in changed:
                path.write_bytes(data)
                say(outcome(read, path, whole))

        found = in_child(work, len(changed), SECONDS)
        left -= max(len(found), 1)
        for verdict in found:
            counts[re.split(r":| -", verdict)[0]] += 1
            ended = verdict == "hang" or verdict.startswith("crash")
            changed_numbers = checked and verdict == "other numbers"
            if verdict.startswith("not") or changed_numbers or ended:
                bad.append(verdict)
    print(f"{sum(counts.values())} {kind} files: {dict(counts.most_common())}")  # noqa: T201
    assert not bad, f"{len(bad)}: " + "\n".join({text[-90:]: text for text in bad}.values())
