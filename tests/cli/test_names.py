"""One name for one thing: every option of every verb against a table of what names mean."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from perturbgen import cli

# What the help of an option begins with, wherever it stands, if more than one verb has it.
MEANINGS = {
    "--batch": "The column of batches",
    "--by": "What tells groups apart",
    "--cells": "The measured cells",
    "--centre": "Labels whose groups are centred",
    "--columns": "TOML that maps the file's columns to ours",
    "--conditions": "The conditions to predict",
    "--config": "TOML file of settings, over the preset",
    "--control": "The level which all others are compared with",
    "--controls": "Which rows are controls",
    "--data": "The data, in place of the configuration's",
    "--device": "cpu, cuda, or auto",
    "--design": "The design as an R formula",
    "--devices": "Devices (processes) on each node",
    "--differ": "Columns in each of which they differ",
    "--dose": "The column of doses",
    "--draws": "Random draws for p-values",
    "--dry-run": "Print the resolved settings and stop",
    "--flavour": "A published recipe of the DE",
    "--folds": "How many folds",
    "--force": "Replace what is already there",
    "--id-map": "id_map.csv: the condition of each row id",
    "--json": "Print JSON instead of tables",
    "--key": "Entry of obsm",
    "--kind": "Which kind",
    "--landmarks": "The genes to take",
    "--latent": "Latent points from",
    "--layer": "Layer of the h5ad",
    "--like": "sample_submission.csv, or an h5ad: the genes and their order",
    "--meta": "Table of the samples",
    "--metrics": "Metrics, separated by commas",
    "--nan": "What to do with NaN",
    "--of": "Whose neighbours",
    "--out": "Output",
    "--part": "Which part of the run's data",
    "--plate": "The column of plates",
    "--plots": "A page (.html)",
    "--preset": "Which preset",
    "--replicates": "How many experiments to draw",
    "--report": "Write report.html beside the tables",
    "--resume": "Go on with this run",
    "--runs": "Where the run directory is made",
    "--same": "Columns in which positives agree",
    "--samplers": "What perturbgen samplers wrote",
    "--seed": "Seed of everything random",
    "--set": "A setting, over everything else",
    "--similarity": "How rows are compared",
    "--norm": "Statistics of batch normalisation",
    "--threads": "CPU threads in all",
    "--top": "How many to show",
    "--train": "The DE table to learn from",
    "--transposed": "The files' rows are samples",
    "--truth": "The measured DE table",
    "--turns": "Average over all flips and turns",
    "--vehicle": "The compound which all others are compared with",
    "--well": "The column of wells",
    "-k": "Neighbours of each row",
}
# Of arguments, which a reader of --help knows by what stands in their place.
ARGUMENTS = {
    "RUN": "A run directory",
    "SOURCE": "A folder of BBBC021",
    "FOLDER": "Images (default: the run's own)",
}


def _verbs(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield " ".join(words), command
    for name, one in (below or {}).items():
        yield from _verbs(one, (*words, name))


@pytest.fixture(scope="module")
def helps() -> dict[str, dict[str, str]]:
    """The help of every option by its first name and by verb."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for words, verb in _verbs(typer.main.get_command(cli._app)):
        for one in verb.params:
            if one.param_type_name == "option" and one.name != "help":
                found[one.opts[0]][words] = one.help
    return found


def test_every_name_means_one_thing(helps: dict[str, dict[str, str]]) -> None:
    shared = {name for name, texts in helps.items() if len(texts) > 1}
    assert shared == set(MEANINGS), "a name that two verbs have has its meaning in MEANINGS"
    for name, meaning in MEANINGS.items():
        for verb, text in helps[name].items():
            assert text.startswith(meaning), f"{verb} {name}: {text}"


def test_every_thing_has_one_name(helps: dict[str, dict[str, str]]) -> None:
    for name, texts in helps.items():
        for verb, text in texts.items():
            twins = [other for other, meaning in MEANINGS.items() if text.startswith(meaning)]
            assert set(twins) <= {name}, f"{verb} {name} says what {twins} means: {text}"


def test_every_option_says_what_it_is(helps: dict[str, dict[str, str]]) -> None:
    silent = [(name, verb) for name, of in helps.items() for verb, text in of.items() if not text]
    assert not silent


def test_an_argument_has_one_meaning() -> None:
    for words, verb in _verbs(typer.main.get_command(cli._app)):
        for one in verb.params:
            if one.param_type_name == "argument" and one.metavar in ARGUMENTS:
                assert one.help.startswith(ARGUMENTS[one.metavar]), (words, one.help)


@pytest.mark.parametrize(
    ("typed", "new"),
    [
        ("train c.toml --accelerator cpu", "--device"),
        ("images evaluate p --control=compound=DMSO", "--controls"),
        ("images evaluate p --page p.html", "--plots"),
        ("images embed r --out o --statistics own", "--norm"),
        ("images embed r --out o --data f", "FOLDER as an argument"),
        ("l1000 neighbours r --of x --most 3", "--top"),
        ("l1000 check f.gctx --genes g.grp", "--landmarks"),
        ("l1000 train --config c.toml", "CONFIG.toml as an argument"),
        ("l1000 train landmarks", "--data landmarks"),
        ("score t p --conditions c.csv", "--strata"),
        ("score t p --reference t.parquet", "--train"),
        ("simulate f --baseline m.csv", "--means"),
        ("simulate f --layout real", "--plan"),
    ],
)
def test_an_old_option_names_its_new_spelling(
    typed: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._run(typed.split()) == 2
    said = capsys.readouterr().err
    assert f"fix          {new}\n" in said, said
