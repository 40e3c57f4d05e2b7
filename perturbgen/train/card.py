"""What the numbers of a trained model mean: a run's card, from which it can be built again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from perturbgen.core.errors import InputError
from perturbgen.core.export import write_table
from perturbgen.core.files import atomic_path, require_file
from perturbgen.core.tables import read_frame

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Card:
    """What the numbers of a trained model mean: enough to build it again without its data.

    Beside it lies a table of the samples that the run was made from, with their parts. Each kind of
    model has its own fields, and says in which files and format all this lies.
    """

    FILE: ClassVar[str] = "model.json"
    FORMAT: ClassVar[int] = 1
    DESCRIBES: ClassVar[str] = "a trained model"
    MEMBERS: ClassVar[str]
    MEMBER: ClassVar[str]  # the column, or the index, of that table that names samples

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The card that ``to_json`` described."""
        return cls(**values)

    def write(self, run: Path, members: pd.DataFrame) -> None:
        """Save in a run directory, with its samples."""
        with atomic_path(run / self.FILE) as part:
            part.write_text(json.dumps({"format": self.FORMAT, **self.to_json()}, indent=1))
        write_table(members, run / self.MEMBERS, index=members.index.name is not None)

    @classmethod
    def read_members(cls, run: Path) -> pd.DataFrame:
        """The samples of a run by name, with their parts in column ``part``."""
        return cls.by_name(read_frame(run / cls.MEMBERS, columns=["part"]))

    @classmethod
    def by_name(cls, members: pd.DataFrame) -> pd.DataFrame:
        """The table with the names of samples as its index, wherever they are."""
        return members if members.index.name == cls.MEMBER else members.set_index(cls.MEMBER)

    @classmethod
    def read(cls, run: Path) -> Self:
        """The card that ``write`` saved."""
        path = require_file(run / cls.FILE, f"description of {cls.DESCRIBES}")
        try:
            values = json.loads(path.read_text())
            version = values.pop("format")
            if version != cls.FORMAT:
                raise InputError(
                    f"{path} has format {version}",
                    expected=f"format {cls.FORMAT}",
                    cause="another version of perturbgen",
                )
            return cls.from_json(values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} does not describe {cls.DESCRIBES}: {error!r}",
                expected="a run of this command",
                cause="a run of train, l1000 train or images train, each of which has commands of "
                "its own, or a copy that broke off",
            ) from None
