"""The record of a run's epochs, ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from perturbgen.errors import InputError
from perturbgen.files import atomic_path, disk_errors, require_file


def append_record(run: Path, record: dict[str, Any]) -> None:
    """Add an epoch to ``metrics.jsonl``, in place of what an interrupted run wrote of it."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if epoch_of(line) < record["epoch"]]
    with disk_errors(path):
        if len(kept) < len(lines):
            with atomic_path(path) as part:
                part.write_text("".join(f"{line}\n" for line in kept))
        with path.open("a") as handle:
            handle.write(json.dumps(record) + "\n")


def epoch_of(line: str) -> float:
    """The epoch of a line of ``metrics.jsonl``; a line that a killed run left half-written belongs to no epoch."""
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def read_records(run: Path) -> list[dict[str, Any]]:
    """The epochs of a run."""
    path = require_file(run / "metrics.jsonl", "record of a run's epochs")
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}", cause="it was edited, or a copy broke off") from None


def ending(run: Path, unit: str) -> dict[str, Any]:
    """How a run ended: a row with its best epoch, by the validation objective where there is one."""
    records = read_records(run)
    key = "validation/objective" if "validation/objective" in records[-1] else "train/objective"
    best = min(records, key=lambda record: record[key])
    row = {"run": str(run), "epochs": len(records), "best_epoch": best["epoch"], "measure": key, "best": best[key]}
    return {**row, f"{unit}_per_second": records[-1][f"{unit}_per_second"]}
