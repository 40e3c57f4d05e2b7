"""The states of training that a run leaves on disk, to be resumed and used: ``checkpoint/*.pt``."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from perturbgen.core.errors import InputError, shorten
from perturbgen.core.files import atomic_path, require_file

if TYPE_CHECKING:
    from pathlib import Path

    import torch

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
