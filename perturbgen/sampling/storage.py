"""A fitted sampler as one ``.npz`` of plain arrays and JSON: reading it runs no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from perturbgen.data.covariates import CovariateEncoder
from perturbgen.errors import InputError
from perturbgen.files import atomic_path, check_output, require_file
from perturbgen.sampling.features import FeatureMaker
from perturbgen.sampling.forest import Forest
from perturbgen.sampling.reference import Reference
from perturbgen.sampling.sampler import CellSampler
from perturbgen.sampling.settings import SamplerSettings
from perturbgen.sampling.wells import WellTable

VERSION: Final = 1
FORESTS: Final = ("counts_forest", "depth_forest")
ARRAYS: Final = ("counts_residual", "depth_residual", "depth_rows")


def save_sampler(sampler: CellSampler, path: str | Path) -> Path:
    """Write a sampler."""
    path = check_output(path, ".npz")
    table, reference = sampler.table, sampler.maker.reference
    about = {
        "version": VERSION,
        "settings": sampler.settings.model_dump(),
        "encoder": json.loads(sampler.maker.encoder.to_json()),
        "groups": table.groups.drop(columns="log_library").to_dict("list"),
        "expected_cells": [[*key, value] for key, value in reference.cells.items()],  # type: ignore[misc]
        "expected_depth": {name: effect.to_dict() for name, effect in reference.depth.items()},
    }
    arrays: dict[str, Any] = {name: getattr(sampler, name) for name in ARRAYS}
    for name in FORESTS:
        arrays |= {f"{name}.{key}": value for key, value in getattr(sampler, name).arrays().items()}
    arrays |= {"log_library": table.groups["log_library"], "log_libraries": table.log_libraries, "starts": table.starts}
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with atomic_path(path) as part, part.open("wb") as handle:
        np.savez_compressed(handle, about=text, **arrays)
    return path


def load_sampler(path: str | Path) -> CellSampler:
    """Read a sampler; files of another kind are refused."""
    path = require_file(path, "sampler")
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return rebuild(json.loads(arrays["about"].tobytes()), arrays)
    except (BadZipFile, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise InputError(
            f"{path} is not a sampler: {error}", expected="a file that CellSampler.save wrote, whole"
        ) from None


def rebuild(about: dict[str, Any], arrays: dict[str, np.ndarray]) -> CellSampler:
    """The sampler from its parts."""
    if about["version"] != VERSION:
        raise ValueError(f"version {about['version']}, and this program reads {VERSION}")
    groups = pd.DataFrame(about["groups"]).assign(log_library=arrays["log_library"])
    plates, kinds, rates = zip(*about["expected_cells"], strict=True)
    index = pd.MultiIndex.from_arrays([plates, kinds], names=["plate", "cell_type"])
    reference = Reference(
        pd.Series(rates, index), {name: pd.Series(effect) for name, effect in about["expected_depth"].items()}
    )
    return CellSampler(
        settings=SamplerSettings(**about["settings"]),
        table=WellTable(groups, arrays["log_libraries"], arrays["starts"]),
        maker=FeatureMaker.of(CovariateEncoder.from_json(json.dumps(about["encoder"])), reference, groups),
        counts_forest=forest_of("counts_forest", arrays),
        depth_forest=forest_of("depth_forest", arrays),
        **{name: arrays[name] for name in ARRAYS},
    )


def forest_of(name: str, arrays: Mapping[str, np.ndarray]) -> Forest:
    """The forest whose arrays begin with ``name``."""
    return Forest.from_arrays({key.partition(".")[2]: arrays[key] for key in arrays if key.startswith(f"{name}.")})
