"""How far a run has come, and how that is kept on disk: ``checkpoint/last.pt``, ``checkpoint/best.pt``.

The record of a run's epochs, ``metrics.jsonl``.
"""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perturbgen.core.errors import InputError
from perturbgen.core.files import atomic_path, disk_errors, require_file

if TYPE_CHECKING:
    import torch

# What the reader of pickles says of bytes that are none, as its documentation warns.
_BROKEN_PICKLE = (
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
)


@dataclass
class State:
    """How far a run has come; everything beside the parameters that a resumed run needs."""

    epoch: int = 0
    batch: int = 0  # of the epoch
    step: int = 0  # in all
    best: float = math.inf
    best_epoch: int = -1
    waited: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of the epoch so far
    seconds: float = 0.0

    def add(self, values: dict[str, float]) -> None:
        """Add a step's sums to the epoch's."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


def save_state(run: Path, name: str, state: dict[str, Any]) -> None:
    """Write ``checkpoint/<name>.pt``; the one before stays until the new one is complete."""
    import torch

    with atomic_path(run / "checkpoint" / f"{name}.pt") as part:
        try:
            torch.save(state, part)
        except RuntimeError as error:  # torch's zip writer reports a full disk this way
            raise OSError(28, f"No space left on device ({error})") from error


def load_state(run: Path, name: str) -> dict[str, Any]:
    """Read ``checkpoint/<name>.pt``: tensors and plain values only."""
    import torch

    path = require_file(run / "checkpoint" / f"{name}.pt", "checkpoint")
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (*_BROKEN_PICKLE, RuntimeError):  # what they say is of pickles, and would not help
        raise InputError(
            f"{path} cannot be read as a checkpoint",
            cause="a copy that broke off, or another file under its name",
            fix="copy the run again",
        ) from None
    needed = {"model", "optimisers", "state"} if name == "last" else {"model"}
    if not isinstance(state, dict) or not needed <= state.keys():
        raise InputError(
            f"{path} is no checkpoint of perturbgen",
            expected=f"a dictionary of {', '.join(sorted(needed))}",
        )
    return state


def load_parameters(model: torch.nn.Module, state: dict[str, torch.Tensor], run: Path) -> None:
    """Put a state into a model that it fits."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise InputError(
            f"the checkpoint in {run} is not of the model in its config.toml: {'; '.join(lines)}",
            cause="config.toml was edited, or the checkpoint copied from another run",
        ) from None


def append_record(run: Path, record: dict[str, Any]) -> None:
    """Add an epoch to ``metrics.jsonl``, in place of what an interrupted run wrote of it."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if _epoch_of(line) < record["epoch"]]
    with disk_errors(path):
        if len(kept) < len(lines):
            with atomic_path(path) as part:
                part.write_text("".join(f"{line}\n" for line in kept))
        with path.open("a") as handle:
            handle.write(json.dumps(record) + "\n")


def _epoch_of(line: str) -> float:
    """The epoch of a line of ``metrics.jsonl``; a line that a killed run left half-written belongs to no epoch."""
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def _read_records(run: Path) -> list[dict[str, Any]]:
    """The epochs of a run."""
    path = require_file(run / "metrics.jsonl", "record of a run's epochs")
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise InputError(
            f"{path} cannot be read: {error}", cause="it was edited, or a copy broke off"
        ) from None


def ending(run: Path, unit: str) -> dict[str, Any]:
    """How a run ended: a row with its best epoch, by the validation objective where there is one."""
    records = _read_records(run)
    key = "validation/objective" if "validation/objective" in records[-1] else "train/objective"
    best = min(records, key=lambda record: record[key])
    row = {
        "run": str(run),
        "epochs": len(records),
        "best_epoch": best["epoch"],
        "measure": key,
        "best": best[key],
    }
    return {**row, f"{unit}_per_second": records[-1][f"{unit}_per_second"]}
