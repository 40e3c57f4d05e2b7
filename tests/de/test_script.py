"""The script of ``docs/limma.md``: a limma user's forty lines in R and Python give the same."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.de.compare import relative

pytestmark = pytest.mark.r
PAGE = Path(__file__).parents[2] / "docs" / "limma.md"
SEEN = ("strongest", "any", "decided", "large", "older", "pathways")


def code_of(language: str) -> str:
    """The page's script in a language."""
    [found] = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return found


def write_experiment(folder: Path) -> None:
    """48 samples of six donors, two cell types, two treatments, ages; three gene sets."""
    rng = np.random.default_rng(11)
    obs = pd.DataFrame({"donor": np.repeat([f"d{i}" for i in range(6)], 8)})
    obs["cell"] = ["T", "B"] * 24
    obs["treatment"] = ["rest", "rest", "stim", "stim"] * 12
    obs["age"] = np.repeat(rng.integers(20, 70, 6), 8)
    obs.index = pd.Index([f"s{i}" for i in range(48)])
    genes = [f"g{i}" for i in range(500)]
    log_mean = np.tile(rng.normal(3, 1.3, 500), (48, 1))
    log_mean += rng.normal(0, 0.3, (6, 500))[np.repeat(np.arange(6), 8)]
    stimulated = (obs["treatment"] == "stim").to_numpy()
    in_t = (obs["cell"] == "T").to_numpy()
    log_mean[np.ix_(stimulated, range(60))] += rng.normal(0.6, 0.4, 60)
    log_mean[np.ix_(stimulated & in_t, range(40, 90))] += rng.normal(0, 0.9, 50)
    log_mean += np.outer((obs["age"] - 45) / 25, rng.normal(0, 0.2, 500))
    mean = np.exp(log_mean) * rng.gamma(9, 1 / 9, (48, 1)) * rng.gamma(8, 1 / 8, log_mean.shape)
    counts = pd.DataFrame(rng.poisson(mean), obs.index, genes)
    counts.iloc[:, -15:] = 0
    counts.T.to_csv(folder / "counts.csv")
    obs.to_csv(folder / "obs.csv")
    sets = {"first": range(50), "second": range(200, 240), "third": range(30, 300, 9)}
    lines = ["\t".join([name, "-", *(genes[i] for i in at)]) for name, at in sets.items()]
    (folder / "sets.gmt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def both(rscript: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("script")
    write_experiment(folder)
    saving = [
        f"x <- {name}; if (is(x, 'TestResults')) x <- as.data.frame(x@.Data); "
        f"write.table(format(x, digits = 17), '{name}.csv', sep = ',', quote = FALSE)"
        for name in SEEN
    ]
    (folder / "script.R").write_text("\n".join([code_of("r"), *saving]) + "\n")
    done = subprocess.run(
        [rscript, "script.R"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(code_of("python"), "script", "exec"), names)
    return folder, names


@pytest.mark.parametrize("name", SEEN)
def test_every_table_is_rs(name: str, both: tuple[Path, dict[str, Any]]) -> None:
    folder, names = both
    found = names[name]
    expected = pd.read_csv(folder / f"{name}.csv", index_col=0, skipinitialspace=True)
    assert list(found.index) == list(expected.index)
    assert list(found.columns) == list(expected.columns)
    words = found.select_dtypes(exclude="number").columns
    assert found[words].equals(expected[words])
    numbers = found.columns.difference(words)
    if name == "decided":
        np.testing.assert_array_equal(found, expected)
        assert 0 < (found != 0).to_numpy().sum() < found.size
    else:
        assert relative(found[numbers], expected[numbers]) < 1e-8


def test_python_is_no_longer_than_r() -> None:
    lengths = [len([x for x in code_of(k).splitlines() if x.strip()]) for k in ("python", "r")]
    assert lengths[0] <= lengths[1]
    assert lengths[1] >= 30
