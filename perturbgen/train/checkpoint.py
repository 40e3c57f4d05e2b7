"""What a run leaves on disk so that it can be resumed and used: ``model.json``, ``cells.parquet``, ``checkpoint/``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from perturbgen.core.config import load_settings
from perturbgen.core.errors import InputError, SchemaError, shorten
from perturbgen.core.files import atomic_path, require_file, require_folder
from perturbgen.core.system import require_device
from perturbgen.core.tables import read_frame
from perturbgen.data import CovariateEncoder
from perturbgen.train.settings import RunSettings
from perturbgen.train.state import load_parameters, load_state

if TYPE_CHECKING:
    import torch

    from perturbgen.models import Covariate, LatentModel
    from perturbgen.train.prepare import Cells

_FORMAT = 1


@dataclass(frozen=True)
class _ModelCard:
    """What a model's parameters mean: enough to build it again without its data."""

    kind: str
    genes: list[str]
    covariates: CovariateEncoder
    descriptor_widths: dict[str, int]
    n_cells: int
    n_held_out: int

    def write(self, run: Path) -> None:
        """Save as ``model.json``."""
        state = {
            "format": _FORMAT,
            **self.__dict__,
            "covariates": json.loads(self.covariates.to_json()),
        }
        with atomic_path(run / "model.json") as part:
            part.write_text(json.dumps(state, indent=1))

    @classmethod
    def read(cls, run: Path) -> _ModelCard:
        """The card that ``write`` saved."""
        path = require_file(run / "model.json", "description of a trained model")
        try:
            state = json.loads(path.read_text())
            version = state.pop("format")
            if version != _FORMAT:
                raise InputError(
                    f"{path} has format {version}",
                    expected=f"format {_FORMAT}",
                    cause="another version of perturbgen",
                )
            covariates = CovariateEncoder.from_json(json.dumps(state.pop("covariates")))
            return cls(covariates=covariates, **state)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} does not describe a generative model of counts: {error!r}",
                expected="a run of perturbgen train",
                cause="a run of l1000 train or images train, which have verbs of their own, or a copy that broke off",
            ) from None


@dataclass(frozen=True)
class TrainedRun:
    """A run as it is used: its model in evaluation mode, with what its inputs mean."""

    path: Path
    settings: RunSettings
    model: LatentModel
    card: _ModelCard

    def parts(self) -> pd.Series:
        """The part (train, validation) of each of the run's cells."""
        return read_parts(self.path)


def describe(settings: RunSettings, cells: Cells) -> _ModelCard:
    """The card of a run about to start."""
    return _ModelCard(
        kind=settings.model.kind,
        genes=[str(gene) for gene in cells.train.var_names],
        covariates=cells.encoder,
        descriptor_widths={name: table.shape[1] for name, table in cells.descriptors.items()},
        n_cells=len(cells.train),
        n_held_out=len(cells.validation),
    )


def write_parts(run: Path, parts: pd.Series) -> None:
    """Save which cell is in which part."""
    with atomic_path(run / "cells.parquet") as part:
        parts.to_frame().to_parquet(part)


def read_parts(run: Path) -> pd.Series:
    """Which cell was in which part."""
    return read_frame(run / "cells.parquet", columns=["part"])["part"]


def require_same_cells(run: Path, parts: pd.Series) -> None:
    """Refuse to resume on other cells: representations and the order of batches belong to the cells of the start."""
    before = read_parts(run)
    if before.index.equals(parts.index) and (before.to_numpy() == parts.to_numpy()).all():
        return
    gone, new = before.index.difference(parts.index), parts.index.difference(before.index)
    detail = (
        f"gone: {shorten(gone)}; new: {shorten(new)}"
        if len(gone) + len(new)
        else "another order or split"
    )
    raise SchemaError(
        f"the data are not those that {run} was trained on ({detail})",
        expected=f"its {len(before):,} cells in their order",
        fix="name the same file, or train anew",
    )


def load_run(path: str | Path, *, which: str = "best", device: str = "cpu") -> TrainedRun:
    """A trained run, its best (or last) model on a device, ready for use."""
    from perturbgen.train.prepare import assemble

    path = require_folder(path, "run directory")
    require_device(device)
    card = _ModelCard.read(path)
    settings = load_settings(RunSettings, path / "config.toml")
    if card.kind != settings.model.kind:
        raise InputError(
            f"{path}: model.json describes a {card.kind}, config.toml a {settings.model.kind}",
            cause="config.toml was edited after training",
        )
    trained_on, named = list(card.covariates.categories), list(settings.conditions)
    if named != trained_on:
        raise InputError(
            f"{path}: model.json has conditions {trained_on}, config.toml {named}",
            cause="config.toml was edited after training",
        )
    known = [_blank_covariate(name, settings, card) for name in settings.conditions]
    share = _uniform(len(card.genes))
    model = assemble(settings, known, share, n_cells=card.n_cells, n_held_out=card.n_held_out)
    load_parameters(model, load_state(path, which)["model"], path)
    return TrainedRun(path, settings, model.to(device).eval(), card)


def _blank_covariate(name: str, settings: RunSettings, card: _ModelCard) -> Covariate:
    """A covariate of the right shape; its descriptors come with the checkpoint."""
    import torch

    from perturbgen.models import Covariate

    condition, size = settings.conditions[name], len(card.covariates.categories[name])
    width = card.descriptor_widths.get(name)
    table = None if width is None else torch.zeros(size, width)
    return Covariate(name, size, condition.encoding, condition.width, condition.dropout, table)


def _uniform(n: int) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.full(n, 1 / n))
