"""The grid: numbers are those of the parts, nothing is computed twice, what fails is named, the
rest goes on.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import perturbgen
from perturbgen.baselines import make
from perturbgen.baselines.rows import _CellTypeMean
from perturbgen.compare import grid, methods
from perturbgen.compare.grid import Job
from perturbgen.core.errors import PerturbgenError
from perturbgen.evaluate import score

from .conftest import CLOSED_FORM, COMPOUNDS, TARGETS, Run, states, write_flat

XGB = {"components": 3, "encoded": 2, "trees": 3, "transform": "none"}


def test_scores_are_those_of_a_fit_by_hand(run: Run, full: pd.DataFrame) -> None:
    found = run()
    cell, compound = (full.index.get_level_values(name) for name in full.index.names)
    hidden = cell.isin(TARGETS) & ~compound.isin(COMPOUNDS[:3])
    train, test = full[~hidden], full[hidden]
    predicted = make("additive").fit(train, rng=np.random.default_rng(0)).predict(test.index)
    by_hand = score(test, predicted, reference=train.mean())
    kept = found.card.scores.loc["additive"][by_hand.columns]
    # predictions are kept as float32
    np.testing.assert_allclose(kept, by_hand.loc[kept.index], rtol=1e-5, atol=1e-6)
    assert found.card.ranking["method"].tolist() == ["additive", "cell_type_mean", "zeros"]
    assert found.card.baselines == ("additive", "cell_type_mean")
    assert set(found.card.strata.columns) >= {"cell_type", "part"}
    pd.testing.assert_frame_equal(
        found.predictions()["additive"],
        predicted.astype(np.float32).astype(float),
        check_names=False,
    )


def test_nothing_is_computed_twice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run()
    assert states(first) == {"done": 3}
    monkeypatch.setattr(Job, "_compute", lambda job: pytest.fail(f"{job.label} was computed again"))
    second = run()
    assert states(second) == {"cached": 3}
    pd.testing.assert_frame_equal(first.card.scores, second.card.scores)


def test_splits_that_divide_alike_are_computed_once_and_both_told(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, failing = Job._compute, list[str]()

    def once(job: Job) -> None:
        if job.method.name == "additive":
            failing.append(job.key)
            raise PerturbgenError("no sums today")
        compute(job)

    monkeypatch.setattr(Job, "_compute", once)
    found = run(splits={"kaggle": {}, "again": {"kind": "kaggle"}})
    assert len(failing) == 1
    assert states(found) == {"done": 2, "cached": 2, "failed": 2}
    assert len(found.jobs) == 6
    assert found.jobs["key"].nunique() == 3
    scores = found.card.scores
    assert scores["again"].equals(scores["kaggle"])


def test_a_changed_setting_recomputes_its_own_jobs_only(run: Run) -> None:
    methods: dict[str, Any] = CLOSED_FORM | {"bilinear_ridge": {"settings": {"components": 3}}}
    run(methods=methods)
    changed = run(methods=methods | {"bilinear_ridge": {"settings": {"components": 4}}})
    table = changed.jobs.set_index("method")["state"]
    assert table.to_dict() == dict.fromkeys(CLOSED_FORM, "cached") | {"bilinear_ridge": "done"}
    assert states(run(methods=methods)) == {"cached": 4}, "the first setting's job is still there"


def test_changed_metrics_are_scored_without_another_fit(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    monkeypatch.setattr(Job, "_fitted", lambda *_: pytest.fail("fitted again"))
    score = {"metrics": ["mean_rowwise_rmse", "mean_rowwise_pearson"], "resamples": 20}
    found = run(score=score)
    assert states(found) == {"done": 3}
    assert [metric.name for metric in found.card.metrics] == score["metrics"]


def test_changed_data_and_code_recompute_everything(
    run: Run, folder: Path, full: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run()
    table = pd.read_parquet(folder / "de_train.parquet")
    table.loc[0, "g0"] += 0.1
    table.to_parquet(folder / "de_train.parquet", index=False)
    found = run()
    assert states(found) == {"done": 3}
    np.testing.assert_array_equal(found.card.scores, run(tmp_path / "fresh").card.scores)
    assert not found.card.scores.equals(before.card.scores)
    monkeypatch.setattr(methods, "_code_version", lambda parts: f"another version of {parts}")
    assert states(run()) == {"done": 3}


def test_seeds_are_averaged_and_deterministic_methods_run_once(run: Run) -> None:
    methods = {"zeros": {}, "random_draw": {}}
    both = run(methods=methods, seeds=[1, 2])
    assert both.jobs.groupby("method").size().to_dict() == {"random_draw": 2, "zeros": 1}
    one, two = (
        run(methods=methods, seeds=[seed]).card.scores.loc["random_draw"] for seed in (1, 2)
    )
    assert not np.allclose(one, two, equal_nan=True)
    np.testing.assert_allclose(both.card.scores.loc["random_draw"], (one + two) / 2)


def test_a_method_that_fails_is_named_and_the_rest_goes_on(
    run: Run, folder: Path, full: pd.DataFrame
) -> None:
    short = full[full.index.get_level_values("compound") != COMPOUNDS[-1]]
    write_flat(short, folder / "short.parquet")
    write_flat(full.drop(columns="g3"), folder / "narrow.parquet")
    write_flat(full.assign(g5=np.nan), folder / "holes.parquet")
    files = {name: {"predictions": f"{name}.parquet"} for name in ("short", "narrow", "holes")}
    found = run(methods=CLOSED_FORM | files)
    errors = found.jobs.set_index("method")["error"]
    assert "2 of 10 conditions: \"('B cells', 'drug 7')\"" in errors["short"]
    assert "lacks 1 of 30 genes: 'g3'" in errors["narrow"]
    assert "10 values that are missing or infinite, in " in errors["holes"]
    assert "the first for condition ('B cells', 'drug 3') and gene 'g5'" in errors["holes"]
    assert found.card.methods == list(CLOSED_FORM)
    assert found.card.info["failed methods"] == list(files)
    assert {job.method.name for job in found.failures} == set(files)


def test_a_crash_inside_a_method_is_a_failed_job(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(_CellTypeMean, "_predict", crash)
    found = run()
    (outcome,) = found.failures.values()
    assert outcome.error == "ZeroDivisionError: of all things"
    assert "Traceback" in outcome.detail
    monkeypatch.undo()
    assert states(run()) == {"cached": 2, "done": 1}, "a failed job is tried again"


def test_without_a_negative_control_there_is_no_scorecard(
    run: Run, folder: Path, full: pd.DataFrame
) -> None:
    write_flat(full.drop(columns="g3"), folder / "narrow.parquet")
    with pytest.raises(PerturbgenError, match="no negative control ran: 'narrow' failed"):
        run(
            methods={"narrow": {"predictions": "narrow.parquet"}, "additive": {}},
            controls={"negatives": ["narrow"]},
        )


def test_an_interrupted_comparison_goes_on_where_it_was(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Job._compute

    def interrupted(job: Job) -> None:
        if job.method.name == "cell_type_mean":
            raise KeyboardInterrupt
        whole(job)

    monkeypatch.setattr(Job, "_compute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.undo()
    found = run()
    assert found.jobs.set_index("method")["state"].to_dict() == {
        "zeros": "cached",
        "additive": "cached",
        "cell_type_mean": "done",
    }


def test_processes_give_the_numbers_of_one_after_the_other(run: Run, tmp_path: Path) -> None:
    methods: dict[str, Any] = CLOSED_FORM | {"random_draw": {}, "xgboost": {"settings": XGB}}
    serial = run(tmp_path / "serial", methods=methods)
    pooled = run(tmp_path / "pooled", methods=methods, workers=2)
    assert states(pooled) == {"done": 5}
    pd.testing.assert_frame_equal(serial.card.scores, pooled.card.scores, check_exact=True)


def test_a_process_that_dies_fails_its_own_job_only(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[str, bool]] = []

    def breaking(waiting: list[Job], workers: int) -> Any:
        found.extend((job.method.name, workers == 1) for job in waiting)
        for job in waiting:
            dies = job.method.name == "additive" or (workers > 1 and job.method.name == "zeros")
            yield job, None if dies else job.run()

    monkeypatch.setattr(grid, "_pooled", breaking)
    result = run(workers=2)
    assert found[3:] == [("zeros", True), ("additive", True)], (
        "those lost are tried again, each alone"
    )
    assert [job.method.name for job in result.failures] == ["additive"]
    assert "out of memory" in next(iter(result.failures.values())).error


def test_a_dask_cluster_gives_the_same_numbers(run: Run, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra [cluster] is not installed")
    serial = run(tmp_path / "serial")
    options = {
        "n_workers": 1,
        "threads_per_worker": 1,
        "processes": False,
        "dashboard_address": None,
    }
    with distributed.LocalCluster(protocol="tcp", **options) as cluster:
        found = run(tmp_path / "dask", scheduler=cluster.scheduler_address)
    assert states(found) == {"done": 3}
    pd.testing.assert_frame_equal(serial.card.scores, found.card.scores, check_exact=True)


PACKAGE = Path(perturbgen.__file__).parent
# What no number depends on (messages, files, processes), and what is in a job's key as values.
NO_NUMBERS = {
    "core/config.py",
    "core/console.py",
    "core/errors.py",
    "core/export.py",
    "core/files.py",
    "core/page.py",
    "core/runs.py",
    "core/system.py",
    "compare/settings.py",
}


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """The module and name of each import from the package, those for type checkers left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    unseen = {
        inner
        for check in checks
        if ast.unparse(check.test) == "TYPE_CHECKING"
        for inner in ast.walk(check)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in unseen:
            for alias in node.names:
                if str(node.module).startswith("perturbgen."):
                    yield str(node.module), alias.name


def home_of(module: str, name: str) -> Path:
    """The file that defines what a module or a room's face offers under a name."""
    place = PACKAGE.joinpath(*module.split(".")[1:])
    if (place / name).is_dir():
        return place / name / "__init__.py"
    if (place / f"{name}.py").exists():
        return place / f"{name}.py"
    if not place.is_dir():
        return place.with_suffix(".py")
    face = place / "__init__.py"
    return next((home_of(m, n) for m, n in imported(face) if n == name), face)


def reached(parts: Iterable[str]) -> set[str]:
    """The files that those of rooms or files import, directly or not, themselves included."""
    waiting = [path for part in parts for path in files_of(part)]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [home_of(*one) for one in imported(path)]
    return {path.relative_to(PACKAGE).as_posix() for path in found}


def files_of(part: str) -> list[Path]:
    return list((PACKAGE / part).rglob("*.py")) or [PACKAGE / part]


@pytest.mark.parametrize("parts", [methods._FITTING, methods._GENERATING, methods._SCORING])
def test_a_jobs_key_knows_all_code_that_its_numbers_come_from(parts: tuple[str, ...]) -> None:
    listed = {path.relative_to(PACKAGE).as_posix() for part in parts for path in files_of(part)}
    # These two import what runs and scores need as well.
    used = reached(set(parts) - {"compare/grid.py", "compare/methods.py"})
    unlisted = used - listed - NO_NUMBERS
    # A method takes the interpolated duplicate of evaluate, whose file imports the metrics, too.
    assert {file for file in unlisted if not file.startswith("evaluate/")} == set()
