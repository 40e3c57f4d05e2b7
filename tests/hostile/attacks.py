"""What can be wrong with a command: a table of attacks on its inputs, outputs and options.

An attack changes a copy of the world or the command, and says which exit codes are right.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.hostile.verbs import ALSO, VERBS, joined

MISTAKE = frozenset({2})
REFUSED = frozenset({1, 2})  # what the system says no to is a failure or a mistake
# half of a text may be a whole smaller one; a folder may take more files than it has
EITHER = frozenset({0, 2})
WORKS = frozenset({0})


@dataclass(frozen=True)
class Case:
    """A command in a folder that holds copies of ``files``, changed by ``prepare``."""

    name: str
    command: tuple[str, ...]
    files: tuple[str, ...]
    codes: frozenset[int]
    prepare: Callable[[Path], None] = field(default=lambda folder: None)
    written: str | None = None  # the only path that may be new or changed


# Inputs


def gone(path: Path) -> None:
    """Remove a file or a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def instead(content: bytes) -> Callable[[Path], None]:
    """Put a file in its place."""

    def attack(path: Path) -> None:
        gone(path)
        path.write_bytes(content)

    return attack


def linked(target: str) -> Callable[[Path], None]:
    """Put a link in its place."""

    def attack(path: Path) -> None:
        gone(path)
        path.symlink_to(path.name if target == "itself" else target)

    return attack


def cut(path: Path) -> None:
    """Keep the first half, as a download that broke off."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def folder_instead(path: Path) -> None:
    """A folder of that name."""
    gone(path)
    path.mkdir()


def junk_inside(path: Path) -> None:
    """A folder of other things."""
    folder_instead(path)
    (path / "notes.txt").write_text("these are, no doubt, words\n")


def cut_inside(path: Path) -> None:
    """Every file of the folder is cut."""
    for file in path.rglob("*"):
        if file.is_file():
            cut(file)


NOISE = np.random.default_rng(0).bytes(3000)
PAGE = b"<!DOCTYPE html><html><body>404, not found</body></html>\n"
WORDS = b"these are, no doubt, words\n"
ON_FILES: dict[str, tuple[Callable[[Path], None], frozenset[int]]] = {
    "is missing": (gone, MISTAKE),
    "is empty": (instead(b""), MISTAKE),
    "is noise": (instead(NOISE), MISTAKE),
    "is text": (instead(WORDS), MISTAKE),
    "is a page": (instead(PAGE), MISTAKE),
    "is NUL bytes": (instead(bytes(4096)), MISTAKE),
    "is a folder": (folder_instead, MISTAKE),
    "is a link to itself": (linked("itself"), MISTAKE),
    "is a link to nothing": (linked("nowhere"), MISTAKE),
    "is /dev/zero": (linked("/dev/zero"), MISTAKE),
    "is /proc/self/mem": (linked("/proc/self/mem"), MISTAKE),
    "is cut": (cut, MISTAKE),
}
ON_FOLDERS: dict[str, tuple[Callable[[Path], None], frozenset[int]]] = {
    "is missing": (gone, MISTAKE),
    "is a file": (instead(WORDS), MISTAKE),
    "is empty": (folder_instead, MISTAKE),
    "holds other things": (junk_inside, MISTAKE),
    "is a link to itself": (linked("itself"), MISTAKE),
    "is a link to nothing": (linked("nowhere"), MISTAKE),
    "has cut files": (cut_inside, MISTAKE),
}

# Outputs

LONG = "n" * 300
OPTIONS = (
    ("an unknown option", "--nonsense", "1"),
    ("a negative seed", "--seed", "-1"),
    ("a seed in words", "--seed", "many"),
    ("a huge seed", "--seed", str(10**40)),
    ("a device that is not there", "--device", "tpu"),
    ("a setting without a value", "--set", "nonsense"),
    ("an unknown setting", "--set", "no.such=1"),
    ("an unknown layer", "--layer", "no such layer"),
    ("a map that is missing", "--columns", "nowhere.toml"),
)


@dataclass(frozen=True)
class Verb:
    """A line of :data:`VERBS`: its words, inputs and output."""

    words: tuple[str, ...]
    inputs: tuple[str, ...]
    out: str | None

    @classmethod
    def read(cls, line: str) -> Verb:
        """Parse a template."""
        inputs = tuple(dict.fromkeys(re.findall(r"{(.+?)}", line)))
        found = re.search(r"<(.+?)>", line)
        return cls(tuple(line.split()), inputs, found[1] if found else None)

    @property
    def name(self) -> str:
        """How cases call it."""
        noun = self.words[0] in ("l1000", "images", "data")
        extra = [word for word in self.words if word in ("--plots",)]
        return " ".join([*self.words[: 2 if noun else 1], *extra])

    @property
    def files(self) -> tuple[str, ...]:
        """What it reads, directly or because a file names it."""
        more = (other for name in self.inputs for other in ALSO.get(name, ()))
        return tuple(dict.fromkeys([*self.inputs, *more]))

    def command(self, *, out: str | None = None) -> tuple[str, ...]:
        """The words with paths in place."""
        names = [re.sub(r"[{}]", "", word) for word in self.words]
        return tuple(re.sub(r"<.+?>", lambda found: out or found[0][1:-1], name) for name in names)

    @property
    def flag(self) -> str | None:
        """The option of its output."""
        where = [i for i, word in enumerate(self.words) if word.startswith("<")]
        return self.words[where[0] - 1] if where else None


def cases() -> list[Case]:
    """Every attack on every verb."""
    found = [case for line in joined(VERBS) for case in _on_verb(Verb.read(line))]
    unique = {case.name: case for case in found}
    assert len(unique) == len(found), "two cases of one name"
    return found


def _on_verb(verb: Verb) -> Iterator[Case]:
    label = f"{verb.name} ({' '.join(verb.inputs)})"
    out, files = verb.out, verb.files
    yield Case(f"{label}: as meant", verb.command(), files, WORKS, written=out)
    for name in verb.inputs:
        for what, (attack, codes) in (
            ON_FILES
            if "." in Path(name).name[1:] and not name.endswith((".profiles",))
            else ON_FOLDERS
        ).items():
            text = Path(name).suffix in (".csv", ".txt", ".toml") and what == "is cut"
            yield Case(
                f"{label}: {name} {what}",
                verb.command(),
                files,
                EITHER if text else codes,
                prepare=_at(name, attack),
                written=out,
            )
    if out is not None:
        yield from _on_output(verb, label)
    for what, *words in OPTIONS:
        yield Case(f"{label}: {what}", (*verb.command(), *words), files, MISTAKE)


def _at(name: str, attack: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: attack(folder / name)


def _on_output(verb: Verb, label: str) -> Iterator[Case]:
    out, files = str(verb.out), verb.files
    suffix = Path(out).suffix
    for name in verb.inputs:
        for how, spelt in (
            ("is", name),
            ("is, through a folder,", f"sub/../{name}"),
            ("is, through a link,", f"link{suffix}"),
        ):
            yield Case(
                f"{label}: {verb.flag} {how} {name}",
                verb.command(out=spelt),
                files,
                MISTAKE if suffix else EITHER,
                prepare=_link(name, f"link{suffix}"),
                written=None if suffix else name,
            )
    kinds = {
        "is in a file": ("file.txt/new" + suffix, MISTAKE),
        "has a name of 300 letters": (LONG + suffix, REFUSED),
        "is in /proc": ("/proc/none/new" + suffix, REFUSED),
        "is empty": ("", MISTAKE),
    }
    if suffix:
        kinds["has another ending"] = ("new.doc", MISTAKE)
        kinds["is a folder"] = ("folder" + suffix, MISTAKE)
    else:
        kinds["is a file"] = ("file.txt", MISTAKE)
    for what, (path, codes) in kinds.items():
        yield Case(
            f"{label}: {verb.flag} {what}",
            verb.command(out=path or "EMPTY"),
            files,
            codes,
            prepare=_bystanders(suffix),
        )


def _link(name: str, link: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / link).symlink_to(folder / name)

    return prepare


def _bystanders(suffix: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        (folder / "file.txt").write_text("mine")
        (folder / f"folder{suffix or '.d'}").mkdir()
        (folder / f"folder{suffix or '.d'}" / "mine.txt").write_text("mine")

    return prepare
