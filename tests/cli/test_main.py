import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from perturbgen import cli
from perturbgen.cli import doctor
from perturbgen.core.errors import PerturbgenError, UserError


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (UserError("bad column"), 2, "UserError: bad column"),
        (PerturbgenError("broke"), 1, "PerturbgenError: broke"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 1, "OSError: No space left"),
        (MemoryError(), 1, "not enough memory"),
    ],
)
def test_every_error_has_its_exit_code_and_no_traceback(
    raised: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise raised

    monkeypatch.setattr(cli, "_app", app)
    assert cli._run([]) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("arguments", [["--version"], ["doctor"], ["doctor", "--json"]])
def test_a_closed_standard_output_is_one_line_and_exit_code_1(arguments: list[str]) -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "perturbgen", *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "OSError: standard output is closed; to see no results, send them to /dev/null"
    ]


def test_unknown_verbs_and_options_are_a_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._run(["nonsense"]) == 2
    assert cli._run(["doctor", "--nonsense"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("perturbgen ")


def test_doctor_prints_versions_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._run(["doctor", "--json"]) == 0
    rows = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["numpy"]["found"].startswith("2.")
    assert rows["numpy"]["how to get it"] == ""


def test_doctor_fails_only_when_something_required_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = doctor.package_version
    monkeypatch.setattr(
        doctor, "package_version", lambda name: None if name == "rdkit" else real(name)
    )
    assert cli._run(["doctor"]) == 0
    monkeypatch.setattr(
        doctor, "package_version", lambda name: None if name == "scipy" else real(name)
    )
    assert cli._run(["doctor"]) == 1
    assert "pip install scipy" in capsys.readouterr().out


def test_doctor_without_r_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    rows = {row["what"]: row for row in doctor._r_rows()}
    assert rows["R"]["found"] is None
    assert "apt-get install r-bioc-limma" in rows["R limma"]["how to get it"]


def test_a_log_line_is_one_line_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    line = "epoch 1/200 · " + "objective 326.7, held out 278.7 · " * 9
    for verbosity, prefix in ((0, ""), (1, "INFO     ")):
        cli._setup_logging(verbosity)
        logging.getLogger("perturbgen.test").info("%s", line)
        assert capsys.readouterr().err == f"{prefix}{line}\n"


def test_a_letter_that_the_terminal_lacks_is_shown_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[data]\npath = "x.h5ad"\n[conditions.compound]\n')
    command = ["-m", "perturbgen", "train", "a.toml", "--dry-run", "--set", "name=Übung"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\xdcbung" in done.stdout


def test_every_verb_stands_in_a_panel_of_help():
    names = [name for panel in cli._PANELS.values() for name in panel.split()]
    assert sorted(names) == sorted(cli._VERBS)


def test_nothing_in_brackets_is_lost_in_help():
    def texts(command: object) -> Iterator[str]:
        for below in getattr(command, "commands", {}).values():
            yield from texts(below)
        yield command.help or ""
        yield from (getattr(one, "help", None) or "" for one in command.params)

    for text in texts(typer.main.get_command(cli._app)):
        # what rich takes for markup; "\\[" is a bracket to be seen
        tags = re.findall(r"(?<!\\)\[([a-z#/@][^\]]*)\]", text)
        assert {tag.strip("/") for tag in tags} <= {"bold", "dim", "italic"}, text


def _verbs(command: object, words: str = "perturbgen") -> Iterator[tuple[str, object]]:
    """Every verb with its words."""
    below = getattr(command, "commands", None)
    if below is None:
        yield words, command
    for name, one in (below or {}).items():
        yield from _verbs(one, f"{words} {name}")


_RUNS = {"run", "resume", "start", "calibration_run", "logdir"}


def test_whatever_takes_a_run_takes_the_latest(tmp_path: Path) -> None:
    (tmp_path / "0003-a-s0").mkdir()
    (tmp_path / "0003-a-s0" / "config.toml").touch()
    found = []
    for words, verb in _verbs(typer.main.get_command(cli._app)):
        for one in verb.params:
            text = f"{one.help or ''} {one.metavar or ''}".lower()
            if one.name in _RUNS or "run|" in text:
                context = verb.context_class(verb, info_name=words)
                got = one.process_value(context, str(tmp_path / "latest"))
                assert got == tmp_path / "0003-a-s0", (words, one.name)
                found.append(f"{words} {one.name}")
    assert len(found) == 15, found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["check", "s.csv"], "perturbgen check-submission"),
        (["check", "counts.h5ad"], "data check"),
        (["baselines"], "perturbgen baseline "),
    ],
)
def test_an_old_verb_names_its_new_spelling(
    old: list[str], new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._run(old) == 2
    assert f"there is no verb {old[0]!r}" in (said := capsys.readouterr().err)
    assert new in said


def test_near_twins_name_each_other_in_the_first_sentence() -> None:
    helps = {words: verb.help for words, verb in _verbs(typer.main.get_command(cli._app))}
    twins = {
        "check-submission": ("data check",),
        "data check": ("check-submission",),
        "evaluate": ("score", "compare"),
        "score": ("compare", "evaluate"),
        "compare": ("score",),
        "retrieve": ("neighbours",),
        "neighbours": ("l1000 neighbours",),
        "l1000 neighbours": ("neighbours",),
    }
    for verb, others in twins.items():
        first = " ".join(helps[f"perturbgen {verb}"].split("\n\n")[0].split())
        for other in others:
            assert f": {other}" in first, (verb, first)
