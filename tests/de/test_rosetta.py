"""Every row of ``docs/limma.md``: what R's column gives is what Python's column gives."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import perturbgen as pg
from tests.de.compare import relative

pytestmark = pytest.mark.r
PAGE = Path(__file__).parents[2] / "docs" / "limma.md"

# Where a row makes an object, what is compared of it: R's expression and Python's.
COMPARED = {
    "the design": ("design", "pg.de.fit(counts, obs, design=design).design.matrix"),
    "normalisation": ("y$samples$norm.factors", "factors"),
    "voom": ("v$weights", "v.weights.T"),
    "the span of limma 3.66": ("chosen$weights", "chosen.weights.T"),
    "the filter": ("which(keep)", "[counts.columns.get_loc(gene) + 1 for gene in keep]"),
    "the fit": ("fit$stdev.unscaled * fit$sigma", "fit.ebayes().se / MODERATED"),
    "contrasts": ("compared$coefficients", "compared.coefficients"),
    "moderation": ("tested$t", "tested.t"),
    "a minimal fold change": ("relevant$t", "relevant.t"),
}


def page_rows() -> dict[str, tuple[str, str]]:
    """The code of R and of Python by the name of the row."""
    found = {}
    for line in PAGE.read_text().splitlines():
        row = re.fullmatch(r"\| ([^|]+?) \| `([^|]+)` \| `([^|]+)` \|", line)
        if row:
            assert row[1] not in found, f"two rows are called {row[1]!r}"
            found[row[1]] = (row[2], row[3])
    return found


ROWS = page_rows()


def experiment() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Counts and obs of 24 samples with three treatments, three donors, a dose and four cells."""
    rng = np.random.default_rng(5)
    obs = pd.DataFrame({"group": np.repeat(["ctrl", "drugA", "drugB"], 8)})
    obs["donor"] = [f"d{i % 3}" for i in range(24)]
    obs["dose"] = rng.uniform(0, 3, 24).round(2)
    obs["cell"] = [("T.stim", "T.rest", "B.stim", "B.rest")[i] for i in rng.permutation(24) % 4]
    obs.index = pd.Index([f"s{i}" for i in range(24)])
    mean = rng.lognormal(3, 1.5, 400) * rng.gamma(8, 1 / 8, (24, 1))
    for column, size in (("group", 0.5), ("donor", 0.3), ("cell", 0.4)):
        codes = obs[column].astype("category").cat.codes.to_numpy()
        mean = mean * np.exp(rng.normal(0, size, (codes.max() + 1, 400)))[codes]
    mean = mean * np.exp(obs["dose"].to_numpy()[:, None] * rng.normal(0, 0.2, 400))
    counts = rng.poisson(mean * rng.gamma(6, 1 / 6, mean.shape)).astype(float)
    counts[:, :12] = 0
    return pd.DataFrame(counts, obs.index, [f"g{i}" for i in range(400)]), obs


@pytest.fixture(scope="module")
def in_r(rscript: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what R gives for every row, of one process."""
    folder = tmp_path_factory.mktemp("rosetta")
    counts, obs = experiment()
    counts.T.to_csv(folder / "counts.csv")
    obs.to_csv(folder / "obs.csv")
    lines = [
        "suppressMessages({library(limma); library(edgeR)})",
        f'setwd("{folder}")',
        "counts <- as.matrix(read.csv('counts.csv', row.names = 1))",
        "obs <- read.csv('obs.csv', row.names = 1, stringsAsFactors = TRUE)",
        "save <- function(x, name) { if (is(x, 'TestResults')) x <- x@.Data; "
        "write.table(format(as.matrix(x), digits = 17), name, sep = ',', quote = FALSE) }",
    ]
    for number, (name, (code, _)) in enumerate(ROWS.items()):
        value = f"value <- {{{code}}}"
        lines += [value, f"save({COMPARED.get(name, ('value', ''))[0]}, '{number}.csv')"]
    (folder / "rows.R").write_text("\n".join(lines) + "\n")
    command = [rscript, str(folder / "rows.R")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def in_python() -> dict[str, Any]:
    """What Python gives for every row, or the error that it raised."""
    counts, obs = experiment()
    names: dict[str, Any] = {"pg": pg, "counts": counts, "obs": obs}
    found: dict[str, Any] = {}
    for name, (_, code) in ROWS.items():
        try:
            value = evaluate(code, names)
            if name == "the fit":  # of an ordinary t in place of a moderated one
                moderation = names["fit"].ebayes().moderation
                sd = np.sqrt(moderation.s2_post) / names["fit"].sigma.to_numpy()
                names["MODERATED"] = sd[:, None]
            found[name] = evaluate(COMPARED[name][1], names) if name in COMPARED else value
        except Exception as error:  # noqa: BLE001
            found[name] = error  # told by the row's own test
    return found


def evaluate(code: str, names: dict[str, Any]) -> Any:
    """Run statements; the value is that of the last one, if it is an expression."""
    body = ast.parse(code).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "row", "exec"), names)
    return eval(compile(ast.Expression(last.value), "row", "eval"), names) if last else None


def test_there_are_enough_rows_and_each_is_compared() -> None:
    assert len(ROWS) >= 40
    tables = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    heads = [line for line in tables if line.startswith("| | R | Python |")]
    assert len(tables) == len(ROWS) + len(heads)  # none that the pattern overlooks
    assert set(COMPARED) <= set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_both_columns_give_the_same(name: str, in_r: Path, in_python: dict[str, Any]) -> None:
    found = in_python[name]
    if isinstance(found, Exception):
        raise found
    number = list(ROWS).index(name)
    expected = pd.read_csv(in_r / f"{number}.csv", index_col=0, skipinitialspace=True)
    if isinstance(found, pd.DataFrame) and set(found.index) == set(expected.index):
        assert list(found.index) == list(expected.index)
    values = np.asarray(found, dtype=float).reshape(expected.shape)
    tolerance = 1e-5 if "robust" in "".join(ROWS[name]) else 1e-8
    if isinstance(found, pd.DataFrame) and "P.Value" in found:
        columns = [str(c).replace(".1", "") for c in expected.columns]
        assert [str(c).replace(":", ".") for c in found.columns] == columns  # as R mangles them
    wanted = expected.to_numpy(float)
    for column in range(wanted.shape[1]):
        if np.median(np.abs(wanted[:, column])) == 0:  # mostly zero: decisions, and t after treat
            np.testing.assert_allclose(values[:, column], wanted[:, column], atol=1e-8)
        else:
            assert relative(values[:, column], wanted[:, column]) < tolerance, column
