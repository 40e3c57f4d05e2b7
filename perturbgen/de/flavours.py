"""The two published ways to make a DE table of the Open Problems experiment.

``kaggle`` is the competition's (614 rows x 18,211 genes): one fit for each cell type, no gene filter. ``op3`` is the
living benchmark's: one joint fit of genes expressed in every cell type, robust moderation, values within +-4. Both use
limma's contrast approximation, whose p-values depend on the order of the levels; so that order is theirs, too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd

from perturbgen.data.vocabulary import ORGANISERS_PLATES, VEHICLE
from perturbgen.de.checks import find_obs
from perturbgen.de.limma import limma_table
from perturbgen.de.table import DETable
from perturbgen.errors import ConfigError, suggest

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

FLAVOURS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "kaggle": {
            "design": "~0 + {group} + donor + plate + row",
            "by": "cell_type",
            "contrasts": "limma",
            "zero_p": "eps",
        },
        "op3": {
            "design": "~0 + {group} + plate",
            "by": "cell_type",
            "joint": True,
            "contrasts": "limma",
            "robust": True,
            "gene_filter": "intersection",
            "adjust": "joint",
            "zero_p": "eps",
        },
    }
)
CLIP = {"kaggle": None, "op3": 4.0}


def flavour_table(
    counts: AnnData | pd.DataFrame,
    obs: pd.DataFrame | None = None,
    *,
    flavour: str,
    group: str = "compound",
    control: str = VEHICLE,
    rename_plates: bool = True,
    **options: Any,
) -> DETable:
    """A DE table in a published flavour; ``options`` are those of ``limma_table`` and override the flavour's.

    For ``kaggle``, compounds are ordered as the organisers' integer codes were, and the released plate names are
    changed back into those of the organisers' own analysis, unless ``rename_plates`` is off.
    """
    if flavour not in FLAVOURS:
        raise ConfigError(f"no flavour {flavour!r}", fix=suggest(flavour, FLAVOURS))
    samples = find_obs(counts, obs)
    if flavour == "kaggle":
        samples = organisers_obs(samples, group=group, rename_plates=rename_plates)
    table = limma_table(counts, samples, group=group, control=control, **{**FLAVOURS[flavour], **options})
    return replace(table, clip=CLIP[flavour], info={**table.info, "flavour": flavour})


def organisers_obs(obs: pd.DataFrame, *, group: str, rename_plates: bool) -> pd.DataFrame:
    """obs with the plate names and the order of compounds of the organisers' analysis."""
    obs = obs.copy()
    if group in obs and not obs[group].isna().any():
        obs[group] = order_of_appearance(obs[group].astype(str))
    if rename_plates and "plate" in obs:
        plates = obs["plate"].astype(str)
        if set(plates) <= set(ORGANISERS_PLATES):
            obs["plate"] = plates.map(ORGANISERS_PLATES)
        else:
            log.info("these are not the competition's six plates: their names are left as they are")
    return obs


def order_of_appearance(names: pd.Series) -> pd.Series:
    """Names as categories, ordered as R orders the text of their numbers 0, 1, 2, ... by first appearance."""
    numbers = {name: str(i) for i, name in enumerate(dict.fromkeys(names))}
    return names.astype(pd.CategoricalDtype(sorted(numbers, key=lambda name: numbers[name])))
