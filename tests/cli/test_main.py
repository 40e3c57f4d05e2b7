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
