"""camera, fry and roast have limma's numbers; roast's within the error of random rotations."""

from __future__ import annotations

import gzip
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import PerturbgenError
from perturbgen.de import LinearFit, camera, fit, fry, read_gmt, roast
from tests.de.cases import NAMES, case
from tests.de.compare import close, relative
from tests.de.test_weights_r import REAL, make

HERE = Path(__file__).parent
DESIGNS = tuple(name for name in NAMES if name != "single replicate")


@dataclass(frozen=True)
class Trial:
    """A fit with one contrast, gene sets, and where R's numbers are."""

    fit: LinearFit
    blocked: LinearFit
    logs: LinearFit
    folder: Path

    def __getitem__(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / f"{name}.csv", index_col=0)

    @property
    def sets(self) -> dict[str, list[str]]:
        return read_gmt(self.folder / "sets.gmt")


def prepare(name: str, data: Path | None, folder: Path) -> Trial:
    """The fits, and the files that R reads."""
    counts, design, block = make(name, data)
    counts = counts.loc[:, counts.sum() > 0].astype(float)
    matrix = pd.DataFrame(design.matrix, counts.index, design.columns).iloc[:, design.kept]
    weights = np.zeros(matrix.shape[1])
    weights[:3] = [-1, 0.5, 0.5]
    rng = np.random.default_rng(len(name))
    genes = counts.columns.to_numpy()
    sets = {
        f"s{k}": list(rng.choice(genes, size, replace=False))
        for k, size in enumerate((1, 2, 5, 20, 60))
    }
    sets["strangers"] = ["nobody", "none"]
    sets["some"] = [*genes[:9], "nobody"]
    lines = ["\t".join([key, "-", *map(str, value)]) for key, value in sets.items()]
    (folder / "sets.gmt").write_text("\n".join(lines) + "\n")
    counts.T.to_csv(folder / "counts.csv")
    matrix.to_csv(folder / "design.csv")
    block.to_frame("block").to_csv(folder / "block.csv")
    pd.DataFrame({"contrast": weights}).to_csv(folder / "contrast.csv")
    obs = block.to_frame("block")
    one, two, three = (f"`{column}`" for column in matrix.columns[:3])
    wanted = {"asked": f"0.5 * {two} + 0.5 * {three} - {one}"}

    def ask(values: pd.DataFrame, **options: object) -> LinearFit:
        return fit(values, obs, design=matrix, **options).contrasts(wanted)

    plain = ask(counts)
    y = pd.DataFrame(plain.logs.e, *counts.axes)
    blocked = ask(counts, block="block", correlation=0.2)
    # R's test has voom's weights of no blocks
    blocked = replace(blocked, logs=replace(blocked.logs, given=plain.logs.weights))
    return Trial(plain, blocked, ask(y, transform="none"), folder)


@pytest.fixture(scope="module")
def trials(rscript: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trial]:
    """R's results of all cases, of one process; real data where it lies."""
    place = os.environ.get("PERTURBGEN_DATA")
    data = Path(place) if place and Path(place).exists() else None
    found = {
        name: prepare(name, data, tmp_path_factory.mktemp("sets"))
        for name in (*DESIGNS, *(REAL if data else ()))
    }
    command = [rscript, str(HERE / "sets.R"), *(str(one.folder) for one in found.values())]
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr

    def get(name: str) -> Trial:
        if name not in found:
            pytest.skip("the real data sets are not here: set PERTURBGEN_DATA")
        return found[name]

    return get


@pytest.fixture(params=[*DESIGNS, *REAL])
def trial(request: pytest.FixtureRequest, trials: Callable[[str], Trial]) -> Trial:
    return trials(request.param)


def same(found: pd.DataFrame, expected: pd.DataFrame, tolerance: float) -> None:
    """The same rows in the same order, with the same columns, directions and numbers."""
    assert set(found.columns) == set(expected.columns)
    assert set(found.index) == set(expected.index)
    lines = expected.loc[found.index]  # ties may be ordered by the last digit
    assert list(found["Direction"]) == list(lines["Direction"])
    for name in set(found.columns) - {"Direction"}:
        assert relative(found[name].to_numpy(), lines[name].to_numpy()) < tolerance, name
    p = "PValue"
    assert relative(np.sort(found[p]), np.sort(expected[p])) < tolerance


@pytest.mark.r
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("camera", {}),
        ("camera_estimated", {"correlation": None}),
        ("camera_negative", {"correlation": None, "allow_negative": True, "trend": True}),
        ("camera_ranks", {"use_ranks": True}),
        ("camera_ranks_estimated", {"use_ranks": True, "correlation": None}),
    ],
)
def test_camera(trial: Trial, name: str, options: dict[str, object]) -> None:
    same(camera(trial.fit, trial.sets, **options), trial[name], 1e-7)


@pytest.mark.r
def test_camera_of_log_values(trial: Trial) -> None:
    same(camera(trial.logs, trial.sets, correlation=None), trial["camera_log"], 1e-7)


@pytest.mark.r
@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("fry", {}, 1e-7),
        ("fry_residual", {"standardize": "residual.sd", "sort": "mixed"}, 1e-7),
        ("fry_p2", {"standardize": "p2", "sort": "none"}, 1e-7),
        ("fry_robust", {"robust": True}, 1e-5),  # as R finds its robust prior
    ],
)
def test_fry(trial: Trial, name: str, options: dict[str, object], tolerance: float) -> None:
    found = fry(trial.fit, trial.sets, **options)
    same(found, trial[name], tolerance)
    if options.get("sort") != "none":
        key = "PValue.Mixed" if "sort" in options else "PValue"
        assert found[key].is_monotonic_increasing


@pytest.mark.r
def test_fry_of_blocks(trial: Trial) -> None:
    same(fry(trial.blocked, trial.sets), trial["fry_blocked"], 1e-7)


@pytest.mark.r
@pytest.mark.parametrize("statistic", ["mean", "floormean", "mean50", "msq"])
def test_roast(trial: Trial, statistic: str) -> None:
    """Directions and shares exactly; p within five errors of 4,999 rotations of either."""
    expected = trial[f"roast_{statistic}"]
    rng = np.random.default_rng(2)
    found = roast(trial.fit, trial.sets, rng=rng, statistic=statistic, rotations=4999, sort="none")
    assert list(found.index) == list(expected.index)
    for name in ("NGenes", "PropDown", "PropUp"):
        close(found[name], expected[name], 1e-12)
    clear = expected["PValue"] < 0.9  # the direction of nothing is chance
    assert (found["Direction"] == expected["Direction"])[clear].all()
    for name in ("PValue", "PValue.Mixed"):
        p = (found[name] + expected[name]).to_numpy() / 2
        error = np.sqrt(2 * p * (1 - p) / 4999) + 1 / 4999
        assert (np.abs(found[name] - expected[name]) < 5 * error).all()


@pytest.fixture(scope="module")
def small() -> LinearFit:
    found = case("balanced")
    return fit(found.counts, found.obs, design="~0 + compound", gene_filter="filterByExpr")


def test_a_set_that_responds_is_found(small: LinearFit) -> None:
    asked = small.contrasts("Abc - vehicle")
    order = asked.ebayes().t.iloc[:, 0].sort_values().index
    sets = {"up": list(order[-15:]), "down": list(order[:15]), "none": list(order[::9])}
    rng = np.random.default_rng(0)
    for table in (camera(asked, sets), fry(asked, sets), roast(asked, sets, rng=rng)):
        assert table.loc["up", "Direction"] == "Up"
        assert table.loc["down", "Direction"] == "Down"
        assert table.loc[["up", "down"], "PValue"].max() < 0.01 < table.loc["none", "PValue"]


def test_roast_repeats_itself_and_a_set_knows_no_other(small: LinearFit) -> None:
    asked = small.contrasts("Abc - vehicle")
    genes = list(asked.genes)
    sets = {"a": genes[:20], "b": genes[30:60]}
    both = roast(asked, sets, rng=np.random.default_rng(1))
    alone = roast(asked, {"b": sets["b"]}, rng=np.random.default_rng(1))
    assert both.loc["b", "PValue"] == alone.loc["b", "PValue"]


def test_gmt_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.gmt"
    path.write_text("one\t-\tA\tB\tA\n\ntwo\thttp://x\tC\n")
    assert read_gmt(path) == {"one": ["A", "B"], "two": ["C"]}
    assert "names genes more than once" in caplog.text
    with gzip.open(tmp_path / "b.gmt.gz", "wt") as file:
        file.write("one\t-\tA\n")
    assert read_gmt(tmp_path / "b.gmt.gz") == {"one": ["A"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("one\t-\n", "has no genes"),
        ("one A B\n", "has no genes"),
        ("one\t-\tA\none\t-\tB\n", "two sets 'one'"),
        ("", "holds no gene sets"),
    ],
)
def test_bad_gmt_files(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.gmt"
    path.write_text(text)
    with pytest.raises(PerturbgenError, match=words):
        read_gmt(path)


@pytest.mark.parametrize(
    ("sets", "options", "words"),
    [
        ({"a": ["CD69", "IL2"]}, {}, "no gene set shares a gene.*CD69.*g"),
        ({"a": "CD69"}, {}, "is one text"),
        ({}, {}, "no gene sets"),
        (["g1"], {}, "no mapping"),
        ({"a": ["g200"]}, {"contrast": "b"}, "no contrast 'b'"),
        ({"a": ["g200"]}, {"correlation": 2.0}, "out of range"),
    ],
)
def test_bad_sets(small: LinearFit, sets: object, options: dict[str, object], words: str) -> None:
    with pytest.raises(PerturbgenError, match=words):
        camera(small.contrasts("Abc - vehicle"), sets, **options)
    with pytest.raises(PerturbgenError, match="several contrasts"):
        camera(small, {"a": ["g200"]})
