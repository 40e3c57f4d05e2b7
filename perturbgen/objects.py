"""A generative model as one object: trained, asked and kept from Python, with cells in memory.

>>> model = pg.NBVAE(cells, conditions=["cell_type", "compound", "plate"])
>>> model.train(epochs=20)
>>> cells.obsm["X_pg"] = model.latent()
>>> new = model.generate(conditions)
>>> table = model.predict_de(conditions)
>>> model.save("mine")

What it does is what the commands do: a run that it trained is one of ``perturbgen train``.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args

from perturbgen.core.errors import ConfigError, PerturbgenError, SchemaError, shorten
from perturbgen.core.files import atomic_path, slug
from perturbgen.core.tables import CONDITION

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from anndata import AnnData

    from perturbgen.train import TrainedRun

_IN_MEMORY = "cells in memory"  # in place of a file's path in a run's settings


class CellModel:
    """A generative model of cells under ``conditions``, which are columns of obs.

    ``cells`` are raw counts, with ``uns["vehicle"]`` or ``vehicle`` naming the compound that others
    are compared with. ``model`` are settings of ``[model]`` in a configuration, such as
    ``decoder={"hidden": [64, 128]}``; a condition may have settings of its own:
    ``conditions={"cell_type": {}, "compound": {"encoding": "embedding"}}``. ``kind`` names a model
    of another package (``CellModel(cells, kind="my_package:Mine", settings={...})``).
    """

    kind: ClassVar[str] = ""

    def __init__(
        self,
        cells: AnnData,
        *,
        conditions: Sequence[str] | Mapping[str, Mapping[str, Any]] = CONDITION,
        vehicle: str | None = None,
        seed: int = 0,
        kind: str | None = None,
        **model: Any,
    ) -> None:
        kind = kind or self.kind
        if not kind or (self.kind and kind != self.kind):
            raise ConfigError(
                f"{type(self).__name__} with kind={kind!r}",
                expected="CellModel(cells, kind=...), or the class of a kind without it",
            )
        # told now, not after an hour of training: RunSettings of what cannot be is an error
        self._asked: dict[str, Any] = {
            "data": {"path": _IN_MEMORY},
            "name": slug(kind),
            "seed": seed,
            "conditions": _named(conditions),
            "model": {**model, "kind": kind},
        }
        self._settings()
        absent = [name for name in self._asked["conditions"] if name not in cells.obs]
        if absent:
            raise SchemaError(
                f"obs has no column {shorten(absent)}", expected=f"some of {shorten(cells.obs, 12)}"
            )
        self._cells: AnnData | None = _with_vehicle(cells, vehicle)
        self._run: TrainedRun | None = None

    def _settings(self, **sections: Any) -> Any:
        from perturbgen.train import RunSettings

        return RunSettings.load(base={**self._asked, **sections}, fix="see perturbgen train --help")

    def train(
        self,
        epochs: int | None = None,
        *,
        runs: str | Path | None = None,
        validation: float = 0.1,
        accelerator: str = "auto",
        annealing: Mapping[str, Any] | None = None,
        stopping: Mapping[str, Any] | None = None,
        **training: Any,
    ) -> Self:
        """Train from the first step, on all cells but a share for ``validation``.

        The run directory is made in ``runs``, or lies in a temporary folder that ends with this
        object. What else can be given are the sections of a configuration: ``annealing``,
        ``stopping``, and the settings of ``[training]`` by name (``batch_size``, ``threads``, ...).
        """
        from perturbgen.data import CountStore
        from perturbgen.train import CELLS, load_run

        if epochs is not None:
            training["epochs"] = epochs
        sections = {"training": training, "annealing": annealing, "stopping": stopping}
        given = {name: dict(values) for name, values in sections.items() if values}
        data = {"path": _IN_MEMORY, "validation": validation}
        if runs is None:
            runs = mkdtemp(prefix="perturbgen-")
            weakref.finalize(self, shutil.rmtree, runs, ignore_errors=True)
        settings = self._settings(data=data, **given)
        store = CountStore.from_adata(self._own_cells(None))
        path = CELLS.given(store).train(settings, runs=Path(runs), accelerator=accelerator)
        self._run = load_run(path)
        return self

    @property
    def run(self) -> TrainedRun:
        """The trained run: its path, settings and network."""
        if self._run is None:
            raise PerturbgenError(
                f"this {type(self).__name__} has not been trained", fix="call train(epochs=...)"
            )
        return self._run

    def latent(self, cells: AnnData | None = None) -> np.ndarray:
        """Latent points (cells, latent) of these cells, or of the model's own."""
        from perturbgen.data import CountStore
        from perturbgen.train import CellJudge

        store = CountStore.from_adata(self._own_cells(cells))
        return CellJudge(self.run, self.run.of_cells(store)).latents()

    def generate(
        self,
        conditions: pd.DataFrame,
        cells: AnnData | None = None,
        *,
        replicate: int = 1,
        latent: str = "control",
        seed: int = 0,
    ) -> AnnData:
        """Cells of conditions (``cell_type``, ``compound``): raw counts, in each compound's wells.

        How many cells a well has, and how deep, is sampled; a ``replicate`` is another draw.
        """
        from perturbgen.generate import CellSampler, draw_replicate
        from perturbgen.predict import Wells, read_wanted, without

        wanted = read_wanted(conditions)
        measured = without(self.run.in_genes(self._own_cells(cells)), wanted)
        sampler = CellSampler.of(measured, seed=seed)
        wells = Wells.of(self.run, measured, sampler, wanted, latent=latent, seed=seed)
        return draw_replicate(wells.generator, wells.plan, wells.wells, replicate=replicate)

    def predict_de(
        self,
        conditions: pd.DataFrame,
        cells: AnnData | None = None,
        *,
        estimator: str | Sequence[str] = "shrunk",
        calibration: CellModel | None = None,
        **settings: Any,
    ) -> pd.DataFrame | dict[str, pd.DataFrame]:
        """Signed -log10 p of conditions (``cell_type``, ``compound``) x genes.

        Of several estimators, or "all" there are, a table for each by name.

        Wells are generated and fitted among the measured ones. ``calibration`` is a model that
        withheld measured conditions, on which what is predicted is shrunk; ``settings`` are those
        of ``perturbgen predict``: ``replicates``, ``latent``, ``flavour``, ``seed``.
        """
        from perturbgen.data import sampled
        from perturbgen.predict import Estimator, PredictSettings, predict, trained_conditions

        chosen = get_args(Estimator) if estimator == "all" else estimator
        several = not isinstance(chosen, str)
        base = {**settings, "estimators": list(chosen) if several else [chosen]}
        asked = PredictSettings.load(base=base, fix="see perturbgen predict --help")
        other = None if calibration is None else calibration.run
        measured = self._own_cells(cells)
        found = predict(self.run, measured, conditions, asked, calibration_run=other)
        seen = trained_conditions(self.run, sampled(measured).obs)
        for table in found.values.values():
            # a table tells pg.score which of its rows are remembered, not predicted
            table.attrs["remembered"] = int(table.index.isin(seen).sum())
        return dict(found.values) if several else found.values[asked.estimators[0]]

    def save(self, path: str | Path) -> Path:
        """Keep the run directory as ``path``; the cells are not in it."""
        with atomic_path(path) as part:
            shutil.copytree(self.run.path, part)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, cells: AnnData | None = None) -> Self:
        """A run directory of any origin, and the cells that it shall work with."""
        from perturbgen.train import load_run

        run = load_run(path)
        if cls.kind and run.settings.model.kind != cls.kind:
            raise ConfigError(
                f"{path} holds a model of kind {run.settings.model.kind!r}",
                expected=repr(cls.kind),
                fix="load it with the class of that kind",
            )
        model = cls.__new__(cls)
        model._asked = run.settings.model_dump(mode="json", exclude_none=True)
        model._cells, model._run = cells, run
        return model

    def __repr__(self) -> str:
        conditions = ", ".join(self._asked["conditions"]) or "no condition"
        name = type(self).__name__ if self.kind else f"CellModel {self._asked['model']['kind']}"
        lines = [f"{name} of cells given {conditions}"]
        if self._cells is not None:
            lines.append(f"cells: {self._cells.n_obs:,} x {self._cells.n_vars:,} genes")
        if self._run is None:
            return "\n  ".join([*lines, "not trained yet: train(epochs=...)"])
        from perturbgen.train import CELLS

        ending, card = CELLS.ending(self._run.path), self._run.card
        sizes = (f"{key} ({len(found)})" for key, found in card.covariates.categories.items())
        lines[0] = f"{name} of cells given {', '.join(sizes) or 'no condition'}"
        lines.append(f"latent dimensions: {self._run.settings.model.latent}")
        lines.append(
            f"trained: {ending['epochs']} epochs, the best {ending['best_epoch']} "
            f"({ending['measure']} {ending['best']:.5g})"
        )
        return "\n  ".join([*lines, f"run: {self._run.path}"])

    def _own_cells(self, cells: AnnData | None) -> AnnData:
        """The cells that were given, or those of the object."""
        if cells is not None:
            vehicle = None if self._cells is None else self._cells.uns.get("vehicle")
            return _with_vehicle(cells, None if "vehicle" in cells.uns else vehicle)
        if self._cells is None:
            raise SchemaError(
                f"this {type(self).__name__} was loaded without cells",
                fix="give them: load(path, cells), or cells=...",
            )
        return self._cells


class NBVAE(CellModel):
    """A conditional variational autoencoder with negative binomial counts."""

    kind = "nbvae"


class DGD(CellModel):
    """A conditional deep generative decoder: a latent point for each cell, under a mixture."""

    kind = "dgd"


class GaussianVAE(CellModel):
    """A conditional variational autoencoder of normalised values."""

    kind = "gaussian_vae"


def _named(
    conditions: Sequence[str] | Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    if isinstance(conditions, str):
        conditions = [conditions]
    if isinstance(conditions, Mapping):
        return {name: dict(settings) for name, settings in conditions.items()}
    return {name: {} for name in conditions}


def _with_vehicle(cells: AnnData, vehicle: str | None) -> AnnData:
    """The cells, in samples, which name their vehicle; the user's own object stays as it is."""
    from perturbgen.data import sampled

    if "compound" in cells.obs:
        cells = sampled(cells)
    if vehicle is None or cells.uns.get("vehicle") == vehicle:
        return cells
    from anndata import AnnData

    uns = {**cells.uns, "vehicle": vehicle}
    return AnnData(cells.X, obs=cells.obs, var=cells.var, uns=uns)
