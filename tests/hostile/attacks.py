"""What can be wrong with a command: a table of attacks on its inputs, outputs and options.

An attack changes a copy of the world or the command, and says which exit codes are right.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

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
    verbs = [Verb.read(line) for line in joined(VERBS)]
    found = [case for verb in verbs for case in _on_verb(verb)]
    found += [case for verb in verbs for case in (*_on_structure(verb), *_on_bystanders(verb))]
    found += [*_on_settings(), *_on_designs(), *_on_labels()]
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


# Structure of an h5ad


def _hdf5(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def attack(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return attack


def _put(name: str, at: int | slice, value: float) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name][at] = value

    return change


def _without(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


def _elsewhere(file: h5py.File) -> None:
    del file["X"]
    file["X"] = h5py.ExternalLink("/etc/passwd", "X")


STRUCTURES: dict[str, Callable[[h5py.File], None]] = {
    "has a column out of range": _put("X/indices", 3, 10**6),
    "has a negative column": _put("X/indices", 3, -1),
    "has rows that do not rise": _put("X/indptr", 5, 10**7),
    "has too few entries": _put("X/indptr", -1, 3),
    "has no values": _without("X/data"),
    "has no X": _without("X"),
    "has no obs": _without("obs"),
    "has no var": _without("var"),
    "has negative counts": _put("X/data", slice(0, 9), -2),
    "lies elsewhere": _elsewhere,
}


def _on_structure(verb: Verb) -> Iterator[Case]:
    """Counts whose inside is wrong, for every verb that reads them."""
    for name in verb.inputs:
        if name not in ("counts.h5ad", "bulk.h5ad"):
            continue
        for what, change in STRUCTURES.items():
            yield Case(
                f"{verb.name}: {name} {what}",
                verb.command(),
                verb.files,
                EITHER if verb.name == "split" else MISTAKE,  # which reads labels alone
                prepare=_at(name, _hdf5(change)),
                written=verb.out,
            )


def _on_bystanders(verb: Verb) -> Iterator[Case]:
    """Files of the user that are called as ours might be while they are written."""
    if verb.out is None:
        return
    out = Path(verb.out)
    names = (f"{out.stem}.part{out.suffix}", f".{out.name}", f"{out.name}.tmp", ".part")

    def prepare(folder: Path) -> None:
        for name in names:
            (folder / name).write_text("mine")

    # a folder of that name, for what an extraction has not finished, is refused
    yield Case(
        f"{verb.name} {verb.inputs[0]}: the user has files called as ours",
        verb.command(),
        verb.files,
        MISTAKE if verb.name == "l1000 extract" else WORKS,
        prepare=prepare,
        written=verb.out,
    )


SETTINGS = (
    "training.learning_rate=true",
    "training.learning_rate=-1",
    "training.learning_rate=nan",
    "training.epochs=1e23",
    "training.epochs=0",
    "training.epochs='3'",
    "training.batch_size=0",
    "model.latent='3'",
    "model.latent=0",
    "model.latent=2.5",
    "model.encoder=[]",
    "model.encoder=[-3]",
    "model.encoder='a'",
    "name=''",
    "model=3",
    "model.decoder=[]",
    "data.path=''",
    "data.path=3",
    "data.validation=2",
    "conditions={}",
    "conditions.compound=3",
    "conditions.nothing={}",
    "seed=-1",
    "seed=1e40",
    "=",
    "a",
    "a=",
    "....=1",
    "training.epochs=1\nname='x'",
)


def _on_settings() -> Iterator[Case]:
    for setting in SETTINGS:
        yield Case(
            f"train: --set {setting!r}",
            ("train", "nbvae.toml", "--device", "cpu", "--set", setting),
            ("nbvae.toml", "counts.h5ad"),
            EITHER if setting in ("model.encoder=[]", "conditions={}") else MISTAKE,
            written="runs",
        )
    for size in ("model.latent=100_000_000", "model.encoder=[100_000_000, 100_000]"):
        yield Case(
            f"train: --set {size}",
            ("train", "nbvae.toml", "--device", "cpu", "--set", size),
            ("nbvae.toml", "counts.h5ad"),
            REFUSED,
        )


DESIGNS = (
    "~0 + {group} | donor",
    "~0 + {group} + (1 | donor)",
    "~0 + {group} ** 99999",
    "~({group} + donor + plate) ** 40",
    "~0 + C({group})",
    "~0 + {group} + __import__('os').system('touch owned')",
    "~0 + {group} + {open('owned', 'w')}",
    "~0 + {group} + I(donor)",
    "~0 + {group} + system(n_cells)",
    "~0 + {group} + donor.__class__",
    "~0 + {group} + `nothing of this name`",
    "~0 + {group} + 'text'",
    "~0 + {group} + 2 * donor",
    "~" + "(" * 3000 + "{group}" + ")" * 3000,
    "~0 + {group}" + " + donor" * 5000,
    "~0 + {group} + " + ":".join(["donor"] * 60),
    "",
    "~",
    "~0",
    "y ~ {group}",
    "~~{group}",
    "~{group}~donor",
    "~0 + {group} - - donor",
    "~ \x00",
    "~0 + {nothing}",
    "~0 + {",
)


def _on_designs() -> Iterator[Case]:
    for design in DESIGNS:
        # repeated terms and needless brackets are a formula like another
        fine = design.endswith("))") or design.count("donor") > 9
        yield Case(
            f"de: --design {design[:60]!r}",
            ("de", "bulk.h5ad", "--design", design, "--by", "cell_type", "--out", "new.parquet"),
            ("bulk.h5ad",),
            EITHER if fine else MISTAKE,
            written="new.parquet",
        )


LABELS = ("a,b", '"', "=1+1", "\n", "x" * 400, "", "../../x", "<script>", "\u202e", "NA", "1e5")


def _on_labels() -> Iterator[Case]:
    """Names that a table of conditions may hold: predicted, or refused, never another's."""

    def named(label: str) -> Callable[[Path], None]:
        def prepare(folder: Path) -> None:
            table = pd.read_csv(folder / "sim/id_map.csv")
            table.loc[0, "sm_name"] = label
            table.to_csv(folder / "sim/id_map.csv", index=False)

        return prepare

    for label in LABELS:
        files = (
            "sim/id_map.csv",
            "sim/de_train.parquet",
            "mean.parquet",
            "sim/sample_submission.csv",
        )
        for command, codes in (
            ("baseline gene_mean --train sim/de_train.parquet --conditions", EITHER),
            ("submit mean.parquet --like sim/sample_submission.csv --id-map", MISTAKE),
        ):
            words = (*command.split(), "sim/id_map.csv", "--out")
            out = "new.parquet" if codes is EITHER else "new.csv"
            yield Case(
                f"{words[0]}: a compound called {label[:20]!r}",
                (*words, out),
                files,
                codes,
                prepare=named(label),
                written=out,
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
