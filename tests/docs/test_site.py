"""The site: every tutorial is listed, every verb and name documented, and it builds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import perturbgen
from perturbgen.train import RunSettings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

from sitebuild import api, commands, scripts, settings, tables  # noqa: E402 - found beside docs/build.py
from sitebuild.links import broken_links  # noqa: E402


def test_every_tutorial_is_listed():
    index = (DOCS / "tutorials/index.md").read_text()
    listed = re.search(r"\{toctree\}.*?\n\n(.*?):::", index, re.S)
    assert sorted(listed[1].split()) == [tutorial.name for tutorial in scripts.tutorials()]


@pytest.mark.parametrize("tutorial", scripts.tutorials(), ids=lambda one: one.name)
def test_a_tutorial_begins_with_its_title_and_compiles(tutorial):
    cells = tutorial.cells
    assert cells[0].text.startswith("# ")
    assert any(cell.code for cell in cells)
    if tutorial.language == "python":
        for cell in cells:
            compile(cell.code, tutorial.name, "exec")
    else:
        subprocess.run(["bash", "-n", tutorial.path], check=True)


def test_cells_are_text_and_code():
    code = "x = 1\n\n# a comment\ny = 2"
    source = f"head\n# %%\n# # Title\n#\n#     indented\n{code}\n\n# %%\n# Text.\n"
    first, second = scripts.read_cells(source)
    assert first.text == "# Title\n\n    indented"
    assert first.code == code
    assert (second.text, second.code) == ("Text.", "")


def test_a_tutorial_is_run_shown_and_kept(tmp_path):
    path = tmp_path / "try.py"
    path.write_text(
        "# %%\n# # Try\nimport pathlib, sys\nprint('said')\nprint('warned', file=sys.stderr)\n"
        "pathlib.Path('page.html').write_text('<p>')\n# %%\n# {page} page.html A page\nprint(2)\n"
    )
    tutorial = scripts.Tutorial(path)
    kept = scripts.run(tutorial, tmp_path / "cache")
    text = scripts.page(tutorial, kept)
    assert "said\nwarned" in text
    assert 'src="try/page.html"' in text
    assert (kept / "files/page.html").read_text() == "<p>"
    assert scripts.run(tutorial, tmp_path / "cache") == kept
    path.write_text(path.read_text() + "print(3)\n")
    assert scripts.run(tutorial, tmp_path / "cache") != kept


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("bad.py", "# %%\n# # Bad\nprint(1 / 0)\n", "ZeroDivisionError"),
        ("bad.sh", "# %%\n# # Bad\necho before\nfalse\necho after\n", "before"),
        ("empty.py", "# %%\n# # Bad\n# {page} never.html\nprint(1)\n", "never wrote"),
    ],
)
def test_a_tutorial_that_fails_stops_the_build(tmp_path, name, source, message):
    (tmp_path / name).write_text(source)
    with pytest.raises(scripts.TutorialError, match=message):
        scripts.run(scripts.Tutorial(tmp_path / name), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/said.json"))


def test_of_two_builds_on_one_cache_the_quicker_one_is_kept(tmp_path, monkeypatch):
    script, cache = tmp_path / "one.py", tmp_path / "cache"
    script.write_text("# %%\n# # One\n")
    tutorial = scripts.Tutorial(script)
    kept = cache / f"one-{scripts.fingerprint(tutorial)}"

    def meanwhile(_: object, __: object) -> dict[str, object]:
        kept.mkdir(parents=True)
        (kept / "said.json").write_text("{}")
        return {"outputs": [""], "seconds": 0}

    monkeypatch.setattr(scripts, "_execute", meanwhile)
    assert scripts.run(tutorial, cache) == kept
    assert (kept / "said.json").read_text() == "{}"
    assert [path.name for path in cache.iterdir()] == [kept.name]


def test_the_command_reference_has_every_verb_and_option():
    pages = "\n".join(commands.pages().values())
    found = list(_leaves(typer.main.get_command(commands._app), ()))
    assert len(found) > 40
    for words, command in found:
        section = pages.split(f"\n## {' '.join(words)}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            # an argument stands there under its metavar
            named = parameter.metavar if parameter.param_type_name == "argument" else None
            name = (named or parameter.opts[0]).replace("|", "/")
            assert name.lower().strip("[].") in section.lower(), (words, name)


def _leaves(command, words):
    for name, below in getattr(command, "commands", {}).items():
        yield from _leaves(below, (*words, name))
    if not hasattr(command, "commands"):
        yield words, command


def test_what_stands_in_brackets_survives():
    text = r"Splits are [bold]\[splits.NAME][/bold]; also [data] and \[x] with <one>."
    written = commands._markdown(text)
    assert "`[splits.NAME]`" in written
    assert re.sub(r"\\(.)", r"\1", written).endswith("also [data] and [x] with <one>.")


def test_the_python_reference_has_every_name_of_the_top():
    pages = api.pages()
    for name, room in perturbgen._ROOM_OF.items():
        assert re.search(rf"perturbgen\.{room}\.{name}$|data:: {name}$", pages[f"{room}.rst"], re.M)


def test_tables_have_every_metric_and_baseline():
    pages = tables.pages()
    from perturbgen.baselines import REGISTRY
    from perturbgen.evaluate import METRICS

    assert all(f"### {name}\n" in pages["metrics.md"] for name in METRICS)
    assert all(f"| `{name}` |" in pages["baselines.md"] for name in REGISTRY)


def test_the_settings_page_has_every_setting_of_a_run_and_its_comment():
    page = settings.pages()["settings.md"]
    run = page.split("## perturbgen train\n")[1].split("\n## ")[0]
    table = run.split("**`[model.decoder]`**")[1].split("**`[")[0]
    model = RunSettings.model_fields["model"].annotation
    for name in model.model_fields["decoder"].annotation.model_fields:
        assert f"| `{name}` |" in table
    assert "| `additive` | true, false | `false` | conditions also act on each gene's" in table
    # a section's own default for the one within it
    embedder = page.split("## perturbgen l1000 train\n")[1].split("\n## ")[0]
    assert "| `patience` | number | `20` |" in embedder
    # a section that there may be many of, a description in place of a comment, a long comment above
    assert "**`[conditions.NAME]`**" in run
    assert "folder of the competition's files" in page
    assert "learned only from training cells that are called" in run
    # nothing of Python is left
    assert not re.findall(r"Annotated|typing|NoneType|FieldInfo|PydanticUndefined|``", page)


def test_links_between_pages_lead_somewhere():
    """Markdown links of hand-written pages, without a build."""
    written = {f"reference/{name}" for name in tables.pages() | settings.pages()}
    written |= {f"reference/commands/{name}" for name in commands.pages()}
    written |= {f"reference/python/{name}" for name in api.pages()}
    written |= {f"tutorials/{tutorial.name}.md" for tutorial in scripts.tutorials()}
    written |= {"CONTRIBUTING.md", "CHANGELOG.md"}
    texts = {path.relative_to(DOCS): path.read_text() for path in DOCS.glob("*.md")}
    texts[Path("tutorials/index.md")] = (DOCS / "tutorials/index.md").read_text()
    for tutorial in scripts.tutorials():
        name = Path("tutorials") / f"{tutorial.name}.md"
        texts[name] = "\n".join(cell.text for cell in tutorial.cells)
    written |= {str(name) for name in texts}
    for name, text in texts.items():
        for link in re.findall(r"\]\(([^)#\s]+\.md)", text):
            target = (DOCS / name.parent / link).resolve().relative_to(DOCS)
            assert str(target) in written, f"{name}: {link}"


def test_broken_links_of_a_site_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<div class="sidebar"></div><a href="b.html#there">1</a><a href="b.html#gone">2</a>'
        '<a href="gone.html">3</a><a href="https://elsewhere.org">4</a><img src="gone.png">'
    )
    (tmp_path / "b.html").write_text('<p id="there">')
    gone = ["b.html#gone", "gone.html", "gone.png"]
    assert broken_links(tmp_path) == [f"a.html: {link}" for link in gone]


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    command = [sys.executable, str(DOCS / "build.py"), "--out", str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "said when the site was built" in (tmp_path / "html/tutorials/start.html").read_text()
