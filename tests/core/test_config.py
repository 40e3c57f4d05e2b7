import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from perturbgen.core.config import Count, Positive, Settings
from perturbgen.core.errors import ConfigError, InputError
from perturbgen.core.runs import create_run, file_hash, find_run


class Cells(Settings):
    per_well: int = 40
    depth: Positive | Literal["auto", "deep"] = 1.0
    types: tuple[str, ...] = ("B", "NK")


class Experiment(Settings):
    name: str = "x"
    seed: int = 0
    cells: Cells = Cells()


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_later_sources_win(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", "seed = 1\n[cells]\nper_well = 7\n")
    settings = Experiment.load(
        file, overrides=["seed=2", "cells.types=['T']"], base={"name": "base", "seed": 9}
    )
    assert settings == Experiment(name="base", seed=2, cells=Cells(per_well=7, types=("T",)))


def test_an_override_that_is_no_toml_value_is_a_string() -> None:
    assert Experiment.load(overrides=["name=two words"]).name == "two words"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sed = 1", "unknown key 'sed': did you mean 'seed'"),
        ("[cells]\nper_wel = 1", "unknown key 'cells.per_wel': did you mean 'per_well'"),
        ("[cells]\nper_well = 'many'", "'cells.per_well': a number is expected.*found 'many'"),
        (
            "[cells]\ndepth = 'atuo'",
            "a number without quotes or a word .*did you mean 'auto'.*found 'atuo'",
        ),
        (
            "[cells]\ndepth = '3'",
            "a number without quotes or a word .*known: 'auto', 'deep'.*found '3'",
        ),
        ("[cells]\ndepth = true", "'cells.depth': a number is expected.*found True"),
        ("seed = ", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Experiment.load(write(tmp_path / "c.toml", text))


def test_a_number_or_a_word_may_be_either() -> None:
    class Weighted(Settings):
        weight: Positive | Literal["per_sample"] = 1.0

    assert [Weighted.load(base={"weight": value}).weight for value in ("per_sample", 2)] == [
        "per_sample",
        2.0,
    ]
    with pytest.raises(ConfigError, match="without quotes"):
        Weighted.load(base={"weight": "2"})


def test_an_override_without_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no value"):
        Experiment.load(overrides=["seed"])


def test_settings_survive_a_round_trip_through_toml(tmp_path: Path) -> None:
    settings = Experiment(seed=5, cells=Cells(types=("a",)))
    assert Experiment.load(write(tmp_path / "c.toml", settings.to_toml())) == settings


def test_run_directories_are_numbered_and_hold_what_repeats_them(tmp_path: Path) -> None:
    data = write(tmp_path / "d.csv", "1")
    runs = [
        create_run(
            tmp_path / "runs", "My run", Experiment(seed=3), seed=3, data={"d": file_hash(data)}
        )
        for _ in range(2)
    ]
    assert [run.name for run in runs] == ["0001-my-run-s3", "0002-my-run-s3"]
    env = json.loads((runs[0] / "env.json").read_text())
    assert env["seed"] == 3
    assert (
        env["data"]["d"]
        == "sha256:6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    )
    assert Experiment.load(runs[0] / "config.toml").seed == 3


def test_a_run_never_takes_the_place_of_one_that_was_numbered_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = create_run(tmp_path, "a", Experiment(), seed=0)
    (first / "work").write_text("hours")
    look, stale = Path.iterdir, [True]

    def iterdir(folder: Path) -> Iterator[Path]:
        """The first look at the folder is older than the other run."""
        return iter([]) if folder == tmp_path and stale and stale.pop() else look(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert create_run(tmp_path, "a", Experiment(), seed=0).name == "0002-a-s0"
    assert (first / "work").read_text() == "hours"
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0001-a-s0", "0002-a-s0"]


@pytest.mark.parametrize(
    ("name", "run"), [("n" * 400, "0001-" + "n" * 80 + "-s0"), ("α/β", "0001-run-s0")]
)
def test_any_name_makes_a_run(tmp_path: Path, name: str, run: str) -> None:
    assert create_run(tmp_path, name, Experiment(), seed=0).name == run


@pytest.mark.parametrize("value", ["true", "'3'", "1e23", "2.5"])
def test_no_value_is_taken_for_another_kind(value: str) -> None:
    class Net(Settings):
        epochs: Count = 1
        seed: Annotated[int, Field(ge=0)] | None = None

    assert Net.load(overrides=["epochs=3", "seed=4"]) == Net(epochs=3, seed=4)
    for name in ("epochs", "seed") if value != "1e23" else ("epochs",):
        with pytest.raises(ConfigError, match=f"'{name}': "):
            Net.load(overrides=[f"{name}={value}"])


def test_a_run_has_a_number_beyond_9999(tmp_path: Path) -> None:
    (tmp_path / "9999-x-s0").mkdir()
    runs = [create_run(tmp_path, "x", Experiment(), seed=0).name for _ in range(2)]
    assert runs == ["10000-x-s0", "10001-x-s0"]


def test_latest_is_the_run_of_the_highest_number(tmp_path: Path) -> None:
    asked = [("a", 0), ("a", 1), ("a", 0), ("b", 0)]
    made = [create_run(tmp_path / "runs", name, Experiment(), seed=s) for name, s in asked]
    (tmp_path / "runs" / "0009-broke").mkdir()  # no run: nothing was written there
    assert find_run(tmp_path / "runs" / "latest") == made[-1]
    assert find_run(tmp_path / "runs" / "latest-a") == made[2]
    assert find_run(tmp_path / "runs" / "latest-a-s1") == made[1]
    assert find_run(tmp_path / "runs" / "latest-b") == made[3]
    assert find_run(made[0]) == made[0]
    assert find_run("nowhere/0001-a-s0") == Path("nowhere/0001-a-s0")
    for name, words in (("c", "known: 'a', 'b'"), ("aa", "did you mean 'a'")):
        with pytest.raises(InputError, match=f"no run called '{name}'.*\n.*\n.*{words}"):
            find_run(tmp_path / "runs" / f"latest-{name}")
    with pytest.raises(InputError, match="no run in"):
        find_run(tmp_path / "latest")


def test_a_folder_that_is_called_latest_is_itself(tmp_path: Path) -> None:
    create_run(tmp_path, "a", Experiment(), seed=0)
    (tmp_path / "latest").mkdir()
    assert find_run(tmp_path / "latest") == tmp_path / "latest"
