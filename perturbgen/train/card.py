"""What a run leaves on disk to be resumed and used: its card, and checkpoints of its state."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from perturbgen.core.errors import InputError, shorten
from perturbgen.core.files import atomic_path, require_file
from perturbgen.core.tables import read_frame

if TYPE_CHECKING:
    import pandas as pd
    import torch


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
        with atomic_path(run / self.MEMBERS) as part:
            members.to_parquet(part, index=members.index.name is not None)

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


# What the reader of pickles raises on bytes that are none, as its documentation warns.
_BROKEN_PICKLE = (
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
)


def save_state(run: Path, name: str, state: dict[str, Any]) -> None:
    """Write ``checkpoint/<name>.pt``; the one before stays until the new one is complete."""
    import torch

    with atomic_path(run / "checkpoint" / f"{name}.pt") as part:
        try:
            torch.save(state, part)
        except RuntimeError as error:  # torch's zip writer reports a full disk this way
            raise OSError(28, f"No space left on device ({error})") from error


def load_state(run: Path, name: str, into: torch.nn.Module | None = None) -> dict[str, Any]:
    """Read ``checkpoint/<name>.pt``, and put its parameters ``into`` a model that they fit."""
    import torch

    path = require_file(run / "checkpoint" / f"{name}.pt", "checkpoint")
    try:
        # A pickle may run any code; a run directory is passed around, and must not.
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (*_BROKEN_PICKLE, RuntimeError, OSError):  # what they say would not help
        other = path.with_name("last.pt" if name == "best" else "best.pt")
        use = "it holds the last model" if name == "best" else "encode and predict need no more"
        raise InputError(
            f"{path} cannot be read as a checkpoint",
            cause="a copy that broke off, or another file under its name",
            fix="copy the run again" + (f", or use {other}: {use}" if other.exists() else ""),
        ) from None
    needed = {"model", "optimisers", "state"} if name == "last" else {"model"}
    if not isinstance(state, dict) or not needed <= state.keys():
        raise InputError(
            f"{path} is no checkpoint of perturbgen",
            expected=f"a dictionary of {', '.join(sorted(needed))}",
        )
    try:
        if into is not None:
            into.load_state_dict(state["model"])
    except (RuntimeError, TypeError, AttributeError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise InputError(
            f"the checkpoint in {run} is not of the model in its config.toml: {'; '.join(lines)}",
            cause="config.toml was edited, or the checkpoint copied from another run",
        ) from None
    broken = [key for key, value in state["model"].items() if not torch.isfinite(value).all()]
    if broken:
        raise InputError(
            f"{path} holds parameters that are not finite: {shorten(broken, 3)}",
            cause="a training that diverged, or bytes that changed in a copy",
            fix="train again with a lower learning rate, or copy the run again",
        )
    return state
