"""Which column of a stranger's file is which of ours: guessed from names and values, with reasons.

What is written is a column map, a comment for each line; nothing of it is used before somebody can
read it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from perturbgen.core.errors import CountsError, SchemaError, shorten, suggest
from perturbgen.data.column_names import (
    BETWEEN,
    GENE_ID,
    GENE_NAMES,
    ROLES,
    control_of,
    name_rank,
    named_control,
)
from perturbgen.data.samples import parts_of_label
from perturbgen.data.survey import Survey

_COORDINATE: Final = r"[A-P]0?\d{1,2}"
_MOST_TYPES: Final = 500  # more than this are barcodes
_LOOKED_AT: Final = 100  # ids of genes


class Guess(NamedTuple):
    """A guessed value, why, and whether it is more than a hope."""

    value: str
    why: str
    sure: bool = True


@dataclass
class Guesses:
    """What a file's columns are taken for; ``given`` is what a user said, which is not doubted."""

    survey: Survey
    given: Mapping[str, str] = field(default_factory=dict)
    columns: dict[str, Guess] = field(default_factory=dict)
    constants: dict[str, Guess] = field(default_factory=dict)
    extract: dict[str, Guess] = field(default_factory=dict)
    join: dict[str, tuple[str, str]] = field(default_factory=dict)
    vehicle: Guess | None = None
    combine: Guess | None = None
    genes: Guess | None = None

    @classmethod
    def of(cls, survey: Survey, **given: str | None) -> Guesses:
        """Of a survey; ``given`` are columns by our names, and the ``vehicle``."""
        guesses = cls(survey, {name: value for name, value in given.items() if value is not None})
        for name, column in guesses.given.items():
            if name != "vehicle" and column not in survey.obs:
                raise SchemaError(
                    f"{survey.path} has no column {column!r} (for {name})",
                    fix=suggest(column, map(str, survey.obs.columns)),
                )
        guesses._choose()
        return guesses

    @property
    def atlas(self) -> bool:
        """Whether nothing looks like a perturbation."""
        return "compound" not in self.columns

    def _choose(self) -> None:
        self._take("compound", self._compound)
        self._take("cell_type", lambda: self._by_name("cell_type", self._types()))
        if "cell_type" not in self.columns:
            why = "no column looks like cell types or lines: all cells are of one"
            self.constants["cell_type"] = Guess("cells", why)
        if not self.atlas:
            self._vehicle()
        for name, fits in (
            ("donor", self._crosses),
            ("well", self._is_well),
            ("row", self._is_row),
        ):
            self._take(name, lambda name=name, fits=fits: self._by_name(name, fits()))
        if "well" not in self.columns:
            self._take("sample", lambda: self._by_name("sample", self._varies()))
        self._take("plate", lambda: self._by_name("plate", self._is_batch()))
        if not self.atlas:
            self._doses()
            self._donor_in_sample()
            self._combinations()
        self._gene_names()

    def _take(self, name: str, guess: object) -> None:
        """What was given for ``name``, or what is guessed, if anything."""
        if name in self.given:
            self.columns[name] = Guess(self.given[name], "as you said")
        elif (found := guess()) is not None:  # type: ignore[operator]
            self.columns[name] = found

    def _values(self, column: str) -> pd.Series:
        return self.survey.obs[column].dropna()

    def _levels(self, column: str) -> list[str]:
        return [_text(value) for value in self._values(column).unique()]

    def _free(self) -> Iterator[str]:
        """Columns that nothing has been made of, yet."""
        taken = {guess.value for guess in self.columns.values()}
        yield from (str(name) for name in self.survey.obs if str(name) not in taken)

    def _by_name(self, role: str, candidates: Iterable[str]) -> Guess | None:
        """The candidate whose name is the best one for a role."""
        known = ((name_rank(name, role), name) for name in candidates)
        ranked = [(rank, name) for rank, name in known if rank is not None]
        if not ranked:
            return None
        name = min(ranked)[1]
        return Guess(name, self._described(name))

    def _described(self, column: str) -> str:
        levels = self._levels(column)
        return f"{len(levels)} value{'s' * (len(levels) > 1)}: {shorten(levels, 3)}"

    def _compound(self) -> Guess | None:
        """The column of the perturbation: by its name, and by values that look like controls."""
        best: tuple[float, str] | None = None
        for name in self._free():
            levels = self._levels(name)
            if not 2 <= len(levels) <= max(20, len(self.survey.obs) // 2):
                continue
            rank = name_rank(name, "compound")
            control = control_of(levels)
            numbers = pd.api.types.is_numeric_dtype(self.survey.obs[name].dtype)
            if (rank is None or numbers) and control is None:
                continue
            score = (0.0 if rank is None else 30.0 - rank) + (20 if control else 0) - 20 * numbers
            # "ctrl" beside "disease" is weaker evidence where the name says something else
            if rank is None and any(name_rank(name, other) is not None for other in ROLES):
                continue
            if best is None or score > best[0]:
                best = (score, name)
        if best is None or best[0] < 10:
            return None
        return Guess(best[1], self._described(best[1]), sure=best[0] >= 20)

    def _vehicle(self) -> None:
        column = self.columns["compound"].value
        levels = self._levels(column)
        asked = self.given.get("vehicle")
        if asked is not None:
            if asked not in levels:
                raise SchemaError(
                    f"no cell has {column} = {asked!r}, the vehicle you named",
                    expected="the value of the cells that others are compared with",
                    fix=suggest(asked, levels),
                )
            self.vehicle = Guess(asked, "as you said")
        elif (name := control_of(levels)) is not None:
            self.vehicle = Guess(name, f"the name of a control among {len(levels)} values")
        elif (name := named_control(levels)) is not None:
            self.vehicle = Guess(name, f"the one of {len(levels)} values that names a control")
        elif (name := self._undosed(column)) is not None:
            self.vehicle = Guess(name, "the only value whose dose is 0 everywhere")
        else:
            sizes = self._values(column).map(_text).value_counts()
            why = f"no value looks like a control; this one has most cells ({sizes.iloc[0]:,})"
            self.vehicle = Guess(str(sizes.index[0]), why, sure=False)

    def _undosed(self, column: str) -> str | None:
        """The one compound that was never given, by a column of doses."""
        named = self.given.get("dose") or next(
            (name for name in self._free() if name_rank(name, "dose") is not None), None
        )
        if named is None or not pd.api.types.is_numeric_dtype(self.survey.obs[named].dtype):
            return None
        most = (
            self.survey.obs[named]
            .abs()
            .groupby(self.survey.obs[column].map(_text).astype(str))
            .max()
        )
        none = most.index[most == 0]
        return str(none[0]) if len(none) == 1 < len(most) else None

    def _types(self) -> Iterator[str]:
        """Columns of a few values each of which is more than a perturbation's other name."""
        for name in self._free():
            levels = len(self._levels(name))
            few = levels <= min(_MOST_TYPES, max(2, len(self.survey.obs) // 5))
            if levels and few and (levels == 1 or not self._tells_compound(name)):
                yield name

    def _varies(self) -> Iterator[str]:
        for name in self._free():
            if 2 <= len(self._levels(name)) <= max(2, len(self.survey.obs) // 2):
                yield name

    def _tells_compound(self, column: str) -> bool:
        """Whether each of its values has one compound: a sample, or another name of it."""
        if "compound" not in self.columns:
            return False
        pairs = self.survey.obs[[column, self.columns["compound"].value]].dropna()
        return not pairs.drop_duplicates()[column].duplicated().any()

    def _crosses(self) -> Iterator[str]:
        yield from (name for name in self._varies() if self.atlas or not self._tells_compound(name))

    def _is_batch(self) -> Iterator[str]:
        """What was processed together holds several compounds, or there is only one of it."""
        for name in self._free():
            levels = len(self._levels(name))
            if levels == 1 or name in set(self._crosses()):
                yield name

    def _is_well(self) -> Iterator[str]:
        for name in self._free():  # one cell a well is a plate of bulk samples
            if all(re.fullmatch(_COORDINATE, level, re.I) for level in self._levels(name)):
                yield name

    def _is_row(self) -> Iterator[str]:
        for name in self._varies():
            if all(re.fullmatch(r"[A-P]", level, re.I) for level in self._levels(name)):
                yield name

    def _doses(self) -> None:
        """A compound of several doses is as many perturbations."""
        compound = self.columns["compound"].value
        self._take("dose", lambda: self._by_name("dose", self._varies()))
        if "dose" not in self.columns or self.vehicle is None:
            return
        dose = self.columns["dose"].value
        pairs = self.survey.obs[[compound, dose]].dropna().drop_duplicates()
        treated = pairs[pairs[compound].map(_text) != self.vehicle.value]
        if treated[compound].duplicated().any():
            self.join["compound"] = (compound, dose)
            del self.columns["dose"]

    def _donor_in_sample(self) -> None:
        """A donor whose name is what is left of the sample's without the compound's."""
        if "donor" in self.columns or "sample" not in self.columns:
            return
        sample, compound = self.columns["sample"].value, self.columns["compound"].value
        pairs = self.survey.obs[[sample, compound]].dropna().drop_duplicates().map(_text)
        names = "|".join(re.escape(name) for name in sorted(pairs[compound].unique()))
        pattern = rf"^(?:{names})[-_ .]*(.+)$"
        donors = pairs[sample].str.extract(pattern, expand=False)
        counts = pairs[compound].groupby(donors).nunique()
        if donors.notna().all() and len(counts) > 1 and (counts > 1).all():
            why = f"{sample} is the compound and {shorten(counts.index, 3)}"
            self.extract["donor"] = Guess(f"{sample}\0{pattern}", why)

    def _combinations(self) -> None:
        """Whether labels name two perturbations, the vehicle among them or in both orders."""
        if "compound" in self.join or self.vehicle is None:
            return
        levels, vehicle = self._levels(self.columns["compound"].value), self.vehicle.value
        for between in BETWEEN:
            parts = {level: parts_of_label(level, between=between) for level in levels}
            with_vehicle = [name for name, own in parts.items() if len(own) > 1 and vehicle in own]
            orders = pd.Series([" ".join(sorted(own)) for own in parts.values()], list(parts))
            twice = list(orders.index[orders.duplicated(keep=False)])
            if with_vehicle or (twice and between == "+"):
                odd = shorten(dict.fromkeys([*with_vehicle, *twice]), 2)
                why = f"{odd}: the vehicle beside another is nothing, and order means nothing"
                self.combine = Guess(between, why)
                return

    def _gene_names(self) -> None:
        """Names of genes beside ids that nobody reads."""
        try:
            ids, columns = self.survey.genes(self.survey.layer()[0])
        except CountsError:
            return  # init says it
        if not all(re.fullmatch(GENE_ID, name) for name in ids[:_LOOKED_AT]):
            return
        for name in GENE_NAMES:
            found = [column for column in columns if re.sub(r"[^a-z]", "", column.lower()) == name]
            if found:
                values = columns[found[0]]
                why = (
                    f"names such as {shorten(values.dropna().unique(), 2)} for ids such as {ids[0]}"
                )
                self.genes = Guess(found[0], why)
                return

    def to_toml(self, layer: tuple[str | None, str], title: str) -> str:
        """The column map, a reason beside every line."""
        where, why = layer
        lines = [f"# {title}", "# Each line is a guess, and why: change what is wrong.", ""]
        if self.vehicle is not None:
            doubt = "" if self.vehicle.sure else "CHECK THIS: "
            lines.append(f"vehicle = {_quoted(self.vehicle.value)}  # {doubt}{self.vehicle.why}")
        if where is not None:
            lines.append(f"layer = {_quoted(where)}  # {why}")
        if self.combine is not None:
            lines.append(f"combine = {_quoted(self.combine.value)}  # {_line(self.combine.why)}")
        if self.genes is not None:
            lines.append(f"genes = {_quoted(self.genes.value)}  # {_line(self.genes.why)}")
        if self.atlas:
            lines.append("atlas = true  # no column looks like a perturbation")
        lines += ["", "[columns]  # ours = theirs"]
        joined = set(self.join)
        for name, guess in self.columns.items():
            if name not in joined:
                doubt = "" if guess.sure else "CHECK THIS: "
                lines.append(f"{name} = {_quoted(guess.value)}  # {doubt}{_line(guess.why)}")
        for name, (one, other) in self.join.items():
            lines += ["", "[join]", f"{name} = [{_quoted(one)}, {_quoted(other)}]  # several doses"]
        for name, guess in self.constants.items():
            lines += ["", "[constants]", f"{name} = {_quoted(guess.value)}  # {guess.why}"]
        for name, guess in self.extract.items():
            column, pattern = guess.value.split("\0")
            rule = f"{{ column = {_quoted(column)}, pattern = {_quoted(pattern)} }}"
            lines += ["", "[extract]", f"{name} = {rule}  # {_line(guess.why)}"]
        return "\n".join(lines) + "\n"

    def records(self) -> list[dict[str, str]]:
        """A row for each guess, to be shown."""
        named = {"vehicle": self.vehicle} if self.vehicle is not None else {}
        rows = [{"ours": n, "theirs": g.value, "why": g.why} for n, g in named.items()]
        rows += [{"ours": n, "theirs": g.value, "why": g.why} for n, g in self.columns.items()]
        for row in rows:
            if row["ours"] in self.join:
                row["theirs"] = " + ".join(self.join[row["ours"]])
        for name, guess in (("combine", self.combine), ("genes", self.genes)):
            if guess is not None:
                rows.append({"ours": name, "theirs": guess.value, "why": guess.why})
        rows += [{"ours": n, "theirs": "", "why": g.why} for n, g in self.constants.items()]
        rows += [
            {"ours": n, "theirs": f"part of {g.value.partition(chr(0))[0]}", "why": g.why}
            for n, g in self.extract.items()
        ]
        return rows


def _text(value: object) -> str:
    """A label as text; a number as one writes it."""
    if isinstance(value, float | np.floating):
        return f"{value:g}"
    return str(value)


def _quoted(text: str) -> str:
    """A TOML string."""
    if "\\" in text and "'" not in text:
        return f"'{text}'"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _line(text: str) -> str:
    return " ".join(text.split())
