"""How fast and how large are reading embeddings and correcting them?

    python experiments/speed/imaging.py [--rows 12000] [--corrected 30000] [--images 400]
                                        [--only feed]

1. streams an embeddings.csv of 1,024 features into a float32 memory map and reads the same file
   with pandas.read_csv and to_numpy, each in a fresh process;
2. fits nested centring, whitening (TVN) and CORAL on the controls of a simulated memory map and
   writes it corrected, at two sizes, and extends that to 300,000 rows;
3. feeds six-channel images of 128 x 128 to a small network, beside decoding alone and the network
   alone.

Memory is anonymous memory: pages of the mapped files, which the system may drop at any time, are
not counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd

FEATURES = 1024
FULL = 300_000
EXPERIMENTS = 50
MEGABYTE = 1e6


def main() -> None:
    """Both parts, each side in a process of its own."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--corrected", type=int, default=30_000)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--only", choices=("csv", "correction", "feed"))
    parser.add_argument("--folder", help="where the temporary files go")
    options = parser.parse_args()
    parts = {
        "csv": lambda folder: compare_readers(folder / "csv", options.rows),
        "correction": lambda folder: extend_correction(folder, options.corrected),
        "feed": lambda folder: feed_images(folder / "rxrx1", options.images),
    }
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name, part in parts.items():
            if options.only in (None, name):
                part(Path(folder))


def compare_readers(folder: Path, rows: int) -> None:
    """Write a csv, read it both ways."""
    write_csv(folder, rows)
    size = (folder / "embeddings.csv").stat().st_size / MEGABYTE
    shape = f"{rows:,} x {FEATURES:,}"
    print(
        f"embeddings.csv: {shape}, {size:,.0f} MB of text, {rows * FEATURES * 4 / MEGABYTE:,.0f} "
        "MB of float32"
    )
    # the best of three each
    turns = [(run_child("stream", folder), run_child("pandas", folder)) for _ in range(3)]
    ours, theirs = (
        min(side, key=lambda found: found["seconds"]) for side in zip(*turns, strict=True)
    )
    for name, found in (("memory map", ours), ("pandas.read_csv + to_numpy", theirs)):
        used = f"{found['cpu']:6.2f} s of processor   {found['megabytes']:7,.0f} MB"
        print(f"  {name:<28} {found['seconds']:6.2f} s   {used}")
    ratio = theirs["seconds"] / ours["seconds"]
    print(
        f"  ratio {ratio:.1f} (wanted: 3), memory {ours['megabytes']:,.0f} MB (wanted: under 500)"
    )


def write_csv(folder: Path, rows: int) -> None:
    """RxRx19a's two files; the numbers repeat after 500 rows, the ids never."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    tails = [
        ",".join(f"{value:.8g}" for value in row)
        for row in rng.normal(size=(500, FEATURES)).astype(np.float32)
    ]
    ids = [f"HRCE-1_{i // 6144 + 1}_{place(i // 4 % 1536)}_{i % 4 + 1}" for i in range(rows)]
    with open(folder / "embeddings.csv", "w") as file:
        file.write("site_id," + ",".join(f"feature_{i}" for i in range(FEATURES)) + "\n")
        file.writelines(f"{name},{tails[i % 500]}\n" for i, name in enumerate(ids))
    parts = pd.Series(ids).str.rsplit("_", n=3, expand=True)
    labels = {
        "site_id": ids,
        "well_id": [name[:-2] for name in ids],
        "cell_type": "HRCE",
        "experiment": parts[0],
        "plate": parts[1],
        "well": parts[2],
        "site": parts[3],
        "disease_condition": "Mock",
        "treatment": None,
        "treatment_conc": None,
        "SMILES": None,
    }
    pd.DataFrame(labels).to_csv(folder / "metadata.csv", index=False)


def place(number: int) -> str:
    """A well of a 1536-well plate."""
    row = number // 48
    return f"{chr(65 + row) if row < 26 else 'A' + chr(39 + row)}{number % 48 + 1:02d}"


def extend_correction(folder: Path, rows: int) -> None:
    """Half the rows, all rows, and what 300,000 would take."""
    found = {}
    for size in (rows // 2, rows):
        target = folder / f"map{size}"
        write_map(target, size)
        found[size] = run_child("correct", target)
        print(
            f"centre + TVN + CORAL of {size:,} x {FEATURES:,}, {EXPERIMENTS} experiments: "
            f"fit {found[size]['fit']:.1f} s, "
            f"transform {found[size]['transform']:.1f} s, {found[size]['megabytes']:,.0f} MB"
        )
    small, large = found[rows // 2], found[rows]
    slope = (large["megabytes"] - small["megabytes"]) / (rows - rows // 2)
    print(
        f"  extended to {FULL:,} rows: fit under {large['fit'] * FULL / rows:,.0f} s and transform "
        f"{large['transform'] * FULL / rows:,.0f} s (in proportion), "
        f"{large['megabytes'] + slope * (FULL - rows):,.0f} MB (on the line)"
    )
    print("  wanted: under 3,000 MB")


def write_map(folder: Path, rows: int) -> None:
    """A profile folder: 50 experiments of four plates, a tenth of the wells controls."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    mapped = np.lib.format.open_memmap(
        folder / "values.npy", mode="w+", dtype=np.float32, shape=(rows, FEATURES)
    )
    for start in range(0, rows, 4096):
        mapped[start : start + 4096] = rng.standard_normal(
            (min(4096, rows - start), FEATURES), dtype=np.float32
        )
    number = np.arange(rows)
    meta = {
        "experiment": number * EXPERIMENTS // rows,
        "plate": number % 4 + 1,
        "site": number // 4 % 2 + 1,
        "control": rng.random(rows) < 0.1,
    }
    pd.DataFrame(meta).to_parquet(folder / "meta.parquet")
    (folder / "features.json").write_text(json.dumps([f"feature_{i}" for i in range(FEATURES)]))


def run_child(what: str, folder: Path) -> dict[str, float]:
    """What a fresh process measures."""
    command = [sys.executable, __file__, "--child", what, str(folder)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def child(what: str, folder: Path) -> None:
    """Do one thing and print seconds and the peak of memory."""
    from perturbgen.images import readers  # noqa: F401  (loading libraries is not timed)

    with Peak() as peak:
        start, processor = time.perf_counter(), time.process_time()
        found = {"stream": stream, "pandas": read_pandas, "correct": correct, "feed": feed}[what](
            folder
        )
        found |= {"seconds": time.perf_counter() - start, "cpu": time.process_time() - processor}
    print(json.dumps(found | {"megabytes": peak.megabytes}))


def stream(folder: Path) -> dict[str, float]:
    """Our way: joined to the labels and written to disk, too."""
    from perturbgen.images import stream_embeddings

    profiles, _ = stream_embeddings(folder, folder / "profiles")
    return {"rows": len(profiles)}


def read_pandas(folder: Path) -> dict[str, float]:
    """The usual way."""
    return {
        "rows": len(
            pd.read_csv(folder / "embeddings.csv", index_col="site_id").to_numpy(np.float32)
        )
    }


def correct(folder: Path) -> dict[str, float]:
    """Fit the pipeline on controls, write everything corrected."""
    from perturbgen.profiles import read_profiles
    from perturbgen.profiles.correct import ControlScaler, Coral, NestedCentre, Pipeline, Sphering

    profiles = read_profiles(folder)
    keys = ["experiment", "plate", "site"]
    pipeline = Pipeline(NestedCentre(keys), ControlScaler(), Sphering(), Coral(["experiment"]))
    start = time.perf_counter()
    pipeline.fit(profiles.values, profiles.meta, control=profiles.meta["control"])
    fitted = time.perf_counter()
    out = np.lib.format.open_memmap(
        folder / "corrected.npy", mode="w+", dtype=np.float32, shape=profiles.values.shape
    )
    pipeline.transform(profiles.values, profiles.meta, out=out)
    return {"fit": fitted - start, "transform": time.perf_counter() - fitted}


def feed_images(folder: Path, images: int) -> None:
    """Write images; decode only, train only, and both at once; the best of three turns each."""
    from perturbgen.simulation.images import write_rxrx1

    write_rxrx1(folder, size=128, sirnas=max(1, images // 32 - 2), controls=1)
    turns = [run_child("feed", folder) for _ in range(3)]
    decode, train, both = (
        max(turn[name] for turn in turns) for name in ("decode", "train", "both")
    )
    print(
        f"image feed, {turns[0]['images']:,.0f} fields of six 8-bit PNG of 128 x 128, two decoding "
        "threads:"
    )
    print(
        f"  decoding alone {decode:6.0f} images/s   network alone {train:6.0f} images/s   fed "
        f"{both:6.0f} images/s"
    )
    wait = 1 / (1 / decode + 1 / train)
    print(
        f"  one after the other would be {wait:.0f}; the limit is the slower of the two, "
        f"{min(decode, train):.0f}"
    )
    print(f"  peak {max(turn['megabytes'] for turn in turns):,.0f} MB")


def feed(folder: Path) -> dict[str, float]:
    """Images a second: decoding alone, steps of a network on one batch alone, and steps on the
    feed.
    """
    import torch

    from perturbgen.images.network.feed import ImageFeed
    from perturbgen.images.network.fields import Fields, Vocabulary
    from perturbgen.images.network.model import ImageClassifier
    from perturbgen.images.network.settings import ImageData, ImageModelSettings, ImageSettings

    torch.set_num_threads(1)
    data = ImageData(path=folder)
    fields = Fields.read(data)
    words = Vocabulary(tuple(range(int(fields.table["sirna_id"].max()) + 1)), ("HUVEC", "U2OS"), ())
    settings = ImageSettings.model_validate({"data": data, "training": {"batch_size": 32}})
    source = ImageFeed(fields, words, settings)
    model = ImageClassifier(ImageModelSettings(), words, len(fields.channels))
    optimiser = torch.optim.AdamW(model.parameters())

    def step(batch) -> None:  # type: ignore[no-untyped-def]
        optimiser.zero_grad()
        model.cross_entropy(model.embed(batch.images, batch.cell), batch.label).mean().backward()
        optimiser.step()

    one = next(source.epoch(0))
    step(one)
    count = len(fields)
    seconds = {
        "decode": timed(lambda: [len(batch.index) for batch in source.epoch(1)]),
        "train": timed(lambda: [step(one) for _ in range(-(-count // len(one.index)))]),
        "both": timed(lambda: [step(batch) for batch in source.epoch(2)]),
    }
    return {"images": count, **{name: count / value for name, value in seconds.items()}}


def timed(work) -> float:  # type: ignore[no-untyped-def]
    """Seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Peak:
    """The largest anonymous memory of this process while the block runs, looked at every 10 ms."""

    def __enter__(self) -> Peak:
        self.megabytes, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            status = Path("/proc/self/status").read_text()
            kilobytes = int(status.split("RssAnon:")[1].split()[0])
            self.megabytes = max(self.megabytes, kilobytes * 1024 / MEGABYTE)

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


if __name__ == "__main__":
    main()
