"""From a file and settings to stores of training and validation cells and a model that fits them.

Optimisers for the parameter groups of a model of counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from perturbgen.core.errors import CountsError, InputError, SchemaError, shorten
from perturbgen.data import CountStore, CovariateEncoder
from perturbgen.train.feeds import feed
from perturbgen.train.schedules import adamw
from perturbgen.train.settings import ConditionSettings, DataSettings, RunSettings, TrainingSettings

if TYPE_CHECKING:
    import torch

    from perturbgen.models import Covariate, LatentModel
    from perturbgen.nn import GaussianMixture


@dataclass(frozen=True)
class Cells:
    """The cells of a run."""

    train: CountStore
    validation: CountStore
    encoder: CovariateEncoder
    descriptors: Mapping[str, pd.DataFrame]

    def parts(self) -> pd.Series:
        """Which cell is in which part."""
        names = [*self.train.obs.index, *self.validation.obs.index]
        parts = ["train"] * len(self.train) + ["validation"] * len(self.validation)
        return pd.Series(parts, pd.Index(names, name="cell"), name="part", dtype=object)


def read_cells(settings: RunSettings) -> Cells:
    """The run's cells, split and encoded; the encoder is fitted on all of them, so that no category is lost."""
    from perturbgen.core.tables import require_unique

    store = open_store(settings.data)
    if not (len(store) and store.n_genes):
        raise SchemaError(
            f"{settings.data.path} is empty: {len(store)} cells x {store.n_genes} genes"
        )
    require_unique(store.obs.index, "cell", settings.data.path)
    require_unique(store.var_names, "gene", settings.data.path)
    descriptors = {
        name: _read_descriptors(condition.descriptors)
        for name, condition in settings.conditions.items()
        if condition.descriptors
    }
    encoder = _fit_encoder(store.obs, settings.conditions, descriptors)
    store = store.with_covariates(encoder)
    train, validation = _split_cells(store.obs, settings.data, settings.seed)
    cells = Cells(store.subset(train), store.subset(validation), encoder, descriptors)
    refuse_empty(cells.train, cells.validation)
    return cells


def open_store(data: DataSettings) -> CountStore:
    """The counts, checked to be raw, with their obs."""
    from perturbgen.core.tables import open_h5ad
    from perturbgen.data import read_competition, take_layer

    if data.on_disk:
        return CountStore.open(data.path, layer=data.layer)
    if data.path.is_dir() and data.path.suffix != ".zarr":
        if data.layer:
            raise InputError(
                f"layer {data.layer!r}: {data.path} is a folder of competition files, which has no layers"
            )
        return CountStore.from_adata(read_competition(data.path))
    if data.path.suffix == ".zarr":
        return CountStore.open(data.path, layer=data.layer).to("cpu")
    return CountStore.from_adata(take_layer(open_h5ad(data.path), data.layer, data.path))


def _fit_encoder(
    obs: pd.DataFrame,
    conditions: Mapping[str, ConditionSettings],
    descriptors: Mapping[str, pd.DataFrame],
) -> CovariateEncoder:
    """The categories of every condition; one with descriptors has all that are described, seen or not."""
    unknown = [name for name, condition in conditions.items() if condition.unknown]
    encoder = CovariateEncoder.fit(obs, list(conditions), unknown=unknown)
    categories = dict(encoder.categories)
    for name, table in descriptors.items():
        missing = [value for value in categories[name] if value not in table.index]
        if missing:
            raise SchemaError(
                f"condition {name!r}: no descriptors for {shorten(missing)}",
                fix="add rows for them",
            )
        categories[name] = tuple(sorted(table.index))
    return CovariateEncoder(categories, encoder.scales, encoder.unknown)


def _read_descriptors(path: Path) -> pd.DataFrame:
    """A table with a row per category (first column: its name): numbers, or Morgan fingerprints of its SMILES."""
    from perturbgen.core.tables import read_frame
    from perturbgen.data import morgan_fingerprints

    table = read_frame(path)
    if not isinstance(table.index, pd.RangeIndex):
        table = table.reset_index()
    table = table.set_index(table.columns[0])
    table.index = table.index.astype(str)
    if not table.index.is_unique:
        raise SchemaError(
            f"{path} describes {shorten(table.index[table.index.duplicated()].unique())} twice"
        )
    if "smiles" in table:
        return morgan_fingerprints(table["smiles"])
    numbers = table.select_dtypes("number")
    if numbers.empty or not np.isfinite(numbers.to_numpy()).all():
        raise SchemaError(
            f"{path} has no numeric columns, or some that are not finite", expected="finite numbers"
        )
    return numbers


def _split_cells(obs: pd.DataFrame, data: DataSettings, seed: int) -> tuple[pd.Index, pd.Index]:
    """Names of the training and of the validation cells."""
    from perturbgen.core.tables import require_columns, require_unique
    from perturbgen.data import Split

    if data.split is None:
        if data.validation == 0:
            return obs.index, obs.index[:0]
        split = Split.random_cells(obs, rng=np.random.default_rng(seed), fraction=data.validation)
    else:
        split = Split.read(data.split)
    require_unique(split.parts.index, "row", data.split or "the split")
    if split.parts.index.nlevels > 1:
        columns = [str(name) for name in split.parts.index.names]
        require_columns(obs.columns, columns, f"obs, which the split {data.split} is joined by,")
        parts = pd.Series(
            split.parts.reindex(pd.MultiIndex.from_frame(obs[columns].astype(str))).to_numpy(),
            obs.index,
        )
    else:
        parts = split.parts.reindex(obs.index.astype(str)).set_axis(obs.index)
    train = obs.index[parts == "train"]
    if not len(train):
        named = (
            f"the split {data.split}" if data.split else f"data.validation = {data.validation:g}"
        )
        raise SchemaError(
            f"{named} puts none of the {len(obs):,} cells into 'train'",
            cause="the split was made for other data"
            if data.split
            else "so few cells that all of them are withheld",
        )
    return train, obs.index[parts == "validation"]


def refuse_empty(*stores: CountStore) -> None:
    """A cell without counts has no composition to model."""
    empty = [name for store in stores for name in store.obs.index[_totals(store) == 0]]
    if empty:
        raise CountsError(
            f"{len(empty)} cells have no counts at all: {shorten(empty)}",
            expected="cells with at least one count",
            fix="drop them",
        )


def _totals(store: CountStore) -> np.ndarray:
    """Total counts (cells,)."""
    from perturbgen.models.base import sizes

    parts = [sizes(batch.counts, "total").cpu().numpy() for batch in feed(store, 4096)]
    return np.concatenate([np.zeros(0), *parts])


def _gene_shares(store: CountStore) -> torch.Tensor:
    """Each gene's part of all counts, (genes,), half a count added."""
    import torch

    total = torch.full((store.n_genes,), 0.5, dtype=torch.float64)
    for batch in feed(store, 4096):
        total.index_add_(0, batch.counts.columns.cpu(), batch.counts.values.cpu().double())
    return total / total.sum()


def build_model(settings: RunSettings, cells: Cells, *, seed: int) -> LatentModel:
    """The model, its first parameters drawn from ``seed``."""
    import torch

    share = _gene_shares(cells.train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return assemble(
            settings,
            _covariates(settings, cells),
            share,
            n_cells=len(cells.train),
            n_held_out=len(cells.validation),
        )


def _covariates(settings: RunSettings, cells: Cells) -> list[Covariate]:
    """What the model has to know of each condition."""
    import torch

    from perturbgen.models import Covariate

    found = []
    for name, condition in settings.conditions.items():
        values = cells.encoder.categories[name]
        table = cells.descriptors.get(name)
        rows = (
            None
            if table is None
            else torch.from_numpy(table.loc[list(values)].to_numpy(np.float32))
        )
        found.append(
            Covariate(
                name, len(values), condition.encoding, condition.width, condition.dropout, rows
            )
        )
    return found


def assemble(
    settings: RunSettings,
    known: list[Covariate],
    share: torch.Tensor,
    *,
    n_cells: int,
    n_held_out: int,
) -> LatentModel:
    """The model of the settings, from what is known of the data."""
    from perturbgen.models import DGD, NBVAE, Conditions, CountDecoder, GaussianVAE
    from perturbgen.models.gaussian_vae import GaussianDecoder

    model, net = settings.model, settings.model.decoder
    conditions = Conditions(known)
    position = {covariate.name: i for i, covariate in enumerate(known)}
    sizes = {covariate.name: covariate.categories for covariate in known}
    encoder: dict[str, Any] = {
        "encoder_input": model.encoder_input,
        "dropout": model.encoder_dropout,
        "layer_norm": net.layer_norm,
    }
    if model.kind == "gaussian_vae":
        plain = GaussianDecoder(
            model.latent,
            net.hidden,
            len(share),
            n_conditions=conditions.width,
            layer_norm=net.layer_norm,
        )
        return GaussianVAE(model.latent, model.encoder, conditions, plain, **encoder)
    width = model.latent + (2 if model.covariate_space else 0)
    decoder = CountDecoder(
        width,
        net.hidden,
        len(share),
        n_conditions=conditions.width,
        share=share,
        scaling=net.scaling,
        dispersion=net.dispersion,
        n_categories=sizes.get(net.dispersion_by or ""),
        additive=net.additive,
        layer_norm=net.layer_norm,
        dropout=net.dropout,
    )
    category = position.get(net.dispersion_by or "")
    if model.kind == "nbvae":
        return NBVAE(model.latent, model.encoder, conditions, decoder, category=category, **encoder)
    return DGD(
        _mixture(settings, sizes.get(model.components_by or "", model.components)),
        conditions,
        decoder,
        n_cells=n_cells,
        n_held_out=n_held_out,
        category=category,
        inner_steps=model.inner_steps,
        prior_weight=n_cells if model.prior_weight == "per_sample" else model.prior_weight,
        label=position.get(model.components_by or ""),
        covariate=position.get(model.covariate_space or ""),
        covariate_mixture=_covariate_mixture(sizes[model.covariate_space])
        if model.covariate_space
        else None,
    )


def _mixture(settings: RunSettings, components: int) -> GaussianMixture:
    """The DGD's prior."""
    from perturbgen.nn import GaussianMixture

    model = settings.model
    return GaussianMixture(
        components,
        model.latent,
        radius=model.radius,
        hardness=model.hardness,
        sd=model.component_sd,
        concentration=model.concentration,
        covariance=model.covariance,
    )


def _covariate_mixture(components: int) -> GaussianMixture:
    """multiDGD's supervised mixture of a covariate: two dimensions, a component per category."""
    from perturbgen.nn import GaussianMixture

    return GaussianMixture(components, 2, concentration=2.0, covariance="isotropic")


def make_optimisers(model: LatentModel, training: TrainingSettings) -> list[torch.optim.Optimizer]:
    """AdamW for the network and the mixture; for representations an Adam that touches only the rows of a batch."""
    import torch

    from perturbgen.models.dgd import BETAS

    groups = model.groups()
    dense = [(groups["network"], training.learning_rate, training.weight_decay)]
    if "mixture" in groups:
        dense.append((groups["mixture"], training.mixture_rate, 0.0))
    optimisers = [adamw(*dense)]
    if "representations" in groups:
        rate = training.representation_rate
        optimisers.append(torch.optim.SparseAdam(groups["representations"], lr=rate, betas=BETAS))
    return optimisers
