"""The recipe of generative models of counts: how a run builds one from its settings and cells."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd

from perturbgen.core.errors import ConfigError, InputError, SchemaError
from perturbgen.core.tables import require_unique
from perturbgen.data import CountStore, CovariateEncoder, require_same_genes
from perturbgen.train.beginnings import gene_dispersions, gene_shares
from perturbgen.train.card import Card
from perturbgen.train.gauges import LatentSpace
from perturbgen.train.run import Recipe, Trained
from perturbgen.train.settings import CellData, RunSettings

if TYPE_CHECKING:
    import torch
    from anndata import AnnData
    from lightning_fabric import Fabric

    from perturbgen.models import Covariate, LatentModel
    from perturbgen.train.cells import Cells
    from perturbgen.train.heldout import CellBoard
    from perturbgen.train.loop import Training


@dataclass(frozen=True)
class _ModelCard(Card):
    """What a model of counts was trained on."""

    DESCRIBES: ClassVar[str] = "a generative model of counts"
    MEMBERS: ClassVar[str] = "cells.parquet"
    MEMBER: ClassVar[str] = "cell"

    kind: str
    genes: list[str]
    covariates: CovariateEncoder
    descriptor_widths: dict[str, int]
    n_cells: int
    n_held_out: int

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "covariates": json.loads(self.covariates.to_json())}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        covariates = CovariateEncoder.from_json(json.dumps(values.pop("covariates")))
        return cls(covariates=covariates, **values)


class TrainedRun(Trained[RunSettings, "LatentModel", _ModelCard]):
    """A run of a generative model of counts, as it is used."""

    def in_genes(self, cells: AnnData) -> AnnData:
        """The cells with the run's genes in the run's order."""
        genes = pd.Index(self.card.genes)
        if cells.var_names.equals(genes):
            return cells
        if cells.var_names.is_unique and set(genes) == set(cells.var_names):
            return cells[:, genes].copy()
        # Raises with the genes that differ; what passes has a gene twice.
        require_same_genes(cells, self.card.genes)
        raise SchemaError("the cells name a gene more than once", expected="unique names")

    def open_cells(
        self,
        path: Path,
        *,
        layer: str | None = None,
        columns: Path | None = None,
        part: str | None = None,
    ) -> CountStore:
        """Cells of a file for this run, as :meth:`of_cells`."""
        columns = columns or self.columns_of(path)
        store = CellData(path=path, layer=layer, columns=columns).open()
        if not len(store):
            raise SchemaError(f"{path} has no cells", expected="at least one")
        return self.of_cells(store, part=part)

    def columns_of(self, path: Path) -> Path | None:
        """The column map that the run read this file with, if it was this file."""
        return self.settings.columns_of(path)

    def of_cells(self, store: CountStore, *, part: str | None = None) -> CountStore:
        """Cells for this run, all or those of a part of its own.

        The genes are the run's, in any order; a category that none of the cells in the run's own
        file had is refused, unless the run's settings make it ``unknown``.
        """
        from anndata import AnnData

        from perturbgen.train.cells import Cells

        if not store.var_names.equals(pd.Index(self.card.genes)):
            var = pd.DataFrame(index=store.var_names)
            cells = self.in_genes(AnnData(store.counts(), obs=store.obs, var=var))
            store = CountStore.from_adata(cells)
        store = store.with_covariates(self.card.covariates)
        if part is not None:
            store = store.subset(self._cells_of_part(store, part))
        Cells.refuse_empty(store)
        return store

    def _cells_of_part(self, store: CountStore, part: str) -> pd.Index:
        """The run's cells of one part, all of which the file must have."""
        require_unique(store.obs.index, "cell", "the file")
        from perturbgen.train.cells import parts_of

        parts = self.parts()
        names = parts.index[parts == part]
        split = self.settings.data.split
        if not len(names) and split is not None and split.is_file():
            # What a split withholds from the run is no part of the run, but of its split.
            given = parts_of(store.obs, split).dropna()
            names = given.index[given == part]
            parts = pd.concat([parts, given])
        if not len(names):
            raise ConfigError(
                f"the run has no cells in part {part!r}",
                expected=" or ".join(sorted(parts.unique())),
            )
        if not names.isin(store.obs.index).all():
            raise SchemaError(
                f"the file lacks cells of the run's part {part!r}",
                expected="the file it was trained on",
            )
        return names


class _CellRecipe(Recipe[RunSettings, "Cells", _ModelCard, TrainedRun]):
    settings, card, trained = RunSettings, _ModelCard, TrainedRun
    unit, may_change = "cells", ("training.resident",)

    def __init__(self, store: CountStore | None = None) -> None:
        self.store = store

    def given(self, store: CountStore) -> _CellRecipe:
        """The recipe for cells in memory, in place of those that the settings name."""
        return _CellRecipe(store)

    def read(self, settings: RunSettings) -> Cells:
        from perturbgen.train.cells import Cells

        return Cells.of(self.store or settings.data.open(), settings)

    def sources(self, settings: RunSettings) -> Iterable[Path]:
        described = (condition.descriptors for condition in settings.conditions.values())
        data = settings.data
        return filter(None, (data.path, data.split, data.columns, *described))

    def _settings_to_resume(self, run: Path, overrides: Sequence[str]) -> RunSettings:
        settings = super()._settings_to_resume(run, overrides)
        withheld = (self.card.read_members(run)["part"] == "validation").any()
        if settings.data.split is None or withheld:
            return settings
        # older runs stored a share beside the split file, which alone decided
        data = settings.data.model_copy(update={"validation": None})
        return settings.model_copy(update={"data": data})

    def describe(self, settings: RunSettings, data: Cells) -> _ModelCard:
        return _ModelCard(
            kind=settings.model.kind,
            genes=[str(gene) for gene in data.train.var_names],
            covariates=data.encoder,
            descriptor_widths={name: table.shape[1] for name, table in data.descriptors.items()},
            n_cells=len(data.train),
            n_held_out=len(data.validation),
        )

    def members(self, data: Cells) -> pd.DataFrame:
        stores = {"train": data.train.obs.index, "validation": data.validation.obs.index}
        names = pd.Index([name for index in stores.values() for name in index], name="cell")
        parts = [part for part, index in stores.items() for _ in index]
        return pd.Series(parts, names, name="part", dtype=object).to_frame()

    def assemble(self, run: Path, settings: RunSettings, data: Cells, fabric: Fabric) -> Training:
        import torch

        from perturbgen.train.feeds import CellFeed
        from perturbgen.train.loop import Training

        card, share = self.describe(settings, data), gene_shares(data.train)
        r = gene_dispersions(data.train, list(settings.conditions))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            known = _covariates(settings, card, data.descriptors)
            model = _model_of(settings, card, known, share, r)
        stores = [data.train, data.validation]
        if settings.training.resident and not settings.data.on_disk:
            stores = [store.to(fabric.device) for store in stores]
        size = settings.training.batch_size
        train, validation = (CellFeed(store, size, settings.seed) for store in stores)
        optimisers = _optimisers(model, settings)
        return Training(run, settings, train, validation, model, optimisers, fabric)

    def board(self, run: Path, settings: RunSettings, epoch: int) -> CellBoard:
        from perturbgen.train.heldout import CellBoard

        return CellBoard(run, settings, epoch=epoch)

    def latent_note(self, run: Path) -> str:
        """A sentence about a run's latent space where it holds next to nothing, or no word."""
        space = LatentSpace.read(run)
        return "" if space is None else space.sentence()

    def blank(self, run: Path, settings: RunSettings, card: _ModelCard) -> LatentModel:
        import torch

        trained_on, named = list(card.covariates.categories), list(settings.conditions)
        if (card.kind, trained_on) != (settings.model.kind, named):
            raise InputError(
                f"{run}: model.json describes a {card.kind}, config.toml a {settings.model.kind}; "
                f"their conditions are {trained_on} and {named}",
                cause="config.toml was edited after training",
            )
        share = torch.from_numpy(np.full(len(card.genes), 1 / len(card.genes)))
        return _model_of(settings, card, _covariates(settings, card), share)


CELLS = _CellRecipe()
train, resume, train_once, load_run = CELLS.train, CELLS.resume, CELLS.train_once, CELLS.load


def _covariates(
    settings: RunSettings, card: _ModelCard, descriptors: Mapping[str, pd.DataFrame] | None = None
) -> list[Covariate]:
    """What the model has to know of each condition."""
    import torch

    from perturbgen.models import Covariate

    found = []
    for name, condition in settings.conditions.items():
        categories, rows = card.covariates.categories[name], None
        if name in card.descriptor_widths:
            # Where none are given they come with the checkpoint, and only their shape matters here.
            rows = torch.zeros(len(categories), card.descriptor_widths[name])
            if descriptors is not None:
                table = descriptors[name].loc[list(categories)]
                rows = torch.from_numpy(table.to_numpy(np.float32))
        encoding, width = condition.encoding, condition.width
        if encoding == "combination":  # descriptors that its labels say themselves
            encoding = "descriptors"
        found.append(Covariate(name, len(categories), encoding, width, condition.dropout, rows))
    return found


def _model_of(
    settings: RunSettings,
    card: _ModelCard,
    known: list[Covariate],
    share: torch.Tensor,
    r: torch.Tensor | None = None,
) -> LatentModel:
    """The model of the settings; ``share`` and ``r`` (genes,) are where its decoder begins."""
    from perturbgen.models import Blueprint, build_model

    blueprint = Blueprint(settings.model, known, share, card.n_cells, card.n_held_out, r)
    return build_model(settings.model.kind, blueprint)


def _optimisers(model: LatentModel, settings: RunSettings) -> list[torch.optim.Optimizer]:
    """AdamW for network and mixture, for representations an Adam that touches a batch's rows."""
    import torch

    from perturbgen.models.dgd import BETAS
    from perturbgen.train.settings import adamw

    groups, rates = model.groups(), settings.training
    dense = [(groups["network"], rates.learning_rate, rates.weight_decay)]
    if "mixture" in groups:
        dense.append((groups["mixture"], rates.mixture_rate, 0.0))
    optimisers = [adamw(*dense)]
    if "representations" in groups:
        rows, rate = groups["representations"], rates.representation_rate
        optimisers.append(torch.optim.SparseAdam(rows, lr=rate, betas=BETAS))
    return optimisers
