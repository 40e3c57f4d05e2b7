"""A method by its settings: what it is made of, whether chance plays a part, and the Predictor itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import pandas as pd

from perturbgen.baselines import Predictor, find_baseline, make
from perturbgen.compare.folds import Fold
from perturbgen.compare.settings import CompareSettings, DataSettings, MethodSettings
from perturbgen.compare.tables import find, read_table
from perturbgen.core.config import load_settings
from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.core.runs import file_hash
from perturbgen.data import read_h5ad, read_smiles
from perturbgen.evaluate import interpolated_duplicate

if TYPE_CHECKING:
    from perturbgen.predict import PredictSettings, RunFiles

_EXTRAS: Final = ("smiles", "pseudobulk")  # files of data.* that some baselines need or can use


@dataclass(frozen=True)
class Method:
    """One row of the grid: what its predictions depend on, and the files to make it from."""

    name: str
    spec: MethodSettings
    files: Mapping[str, Path]
    record: Mapping[str, Any]
    random: bool
    intervals: bool
    statistic: str
    trained: RunFiles | None = None

    def make(self, measured: pd.DataFrame) -> Predictor:
        """The Predictor, not fitted yet; ``measured`` is what ground truth shows."""
        if self.trained:
            return self.trained.predictor(_run_settings(self.name, self.spec))
        if self.spec.predictions:
            path = self.files["predictions"]
            return _Tabulated(
                path, self.statistic, self.spec.layer, interpolate=self.spec.interpolate
            )
        given: dict[str, Any] = (
            {"truth": measured} if "truth" in find_baseline(self.spec.baseline).needs else {}
        )
        if "smiles" in self.files:
            given["smiles"] = read_smiles(self.files["smiles"])
        if "pseudobulk" in self.files:
            given["pseudobulk"] = read_h5ad(self.files["pseudobulk"])
        return make(self.spec.baseline, **given, **self.spec.settings)


class _Tabulated:
    """Predictions that are there already: rows and genes are chosen by label, and nothing is learnt.

    With ``interpolate`` they are a duplicate experiment, whose noise is taken out of the genes that do not respond.
    """

    def __init__(self, path: Path, statistic: str, layer: str, *, interpolate: bool) -> None:
        self.path, self.interpolate = path, interpolate
        self.table = read_table(path, statistic=statistic, layer=layer)

    def fit(self, train: pd.DataFrame, *, rng: np.random.Generator) -> Self:
        """Keep the genes."""
        self.genes = train.columns
        return self

    def predict(self, conditions: pd.MultiIndex | pd.DataFrame) -> pd.DataFrame:
        """The rows asked for."""
        index = (
            conditions
            if isinstance(conditions, pd.MultiIndex)
            else pd.MultiIndex.from_frame(conditions)
        )
        for wanted, there, what in (
            (index, self.table.index, "conditions"),
            (self.genes, self.table.columns, "genes"),
        ):
            absent = wanted[~wanted.isin(there)]
            if len(absent):
                raise SchemaError(
                    f"{self.path} lacks {len(absent)} of {len(wanted)} {what}: {shorten(absent, 3)}"
                )
        found = self.table.reindex(index=index, columns=self.genes)
        return interpolated_duplicate(found) if self.interpolate else found


def make_methods(settings: CompareSettings) -> list[Method]:
    """All methods, checked: a misspelt name, a wrong setting or a missing file is told before anything is fitted."""
    return [
        _tabulated(name, spec, settings.data)
        if spec.predictions
        else _trained(name, spec, settings.data)
        if spec.run
        else _baseline(name, spec, settings)
        for name, spec in settings.all_methods.items()
    ]


def _tabulated(name: str, spec: MethodSettings, data: DataSettings) -> Method:
    """Predictions from a file."""
    path = find(data, spec.predictions, "file of predictions").absolute()
    record = spec.model_dump(mode="json", exclude={"predictions"}) | {
        "predictions": file_hash(path),
        "statistic": data.statistic,
    }
    return Method(name, spec, {"predictions": path}, record, False, False, data.statistic)


def _trained(name: str, spec: MethodSettings, data: DataSettings) -> Method:
    """A trained run, by its parameters, the cells it predicts among and how it predicts."""
    from perturbgen.predict import RunFiles

    run, *judge = (_find_folder(data, path) for path in (spec.run, spec.calibration_run) if path)
    files = RunFiles(run, find(data, spec.cells, "file of cells").absolute(), *judge).require()
    record = {
        "settings": _run_settings(name, spec).model_dump(mode="json", exclude={"seed"}),
        **files.record(),
    }
    return Method(name, spec, {}, record, True, False, data.statistic, files)


def _find_folder(data: DataSettings, name: str) -> Path:
    """A folder in the data folder, or from the working directory."""
    inside = Path(data.folder) / name
    return (inside if inside.is_dir() else Path(name)).absolute()


def _run_settings(name: str, spec: MethodSettings) -> PredictSettings:
    """How a run predicts: one estimator, the comparison's own seeds."""
    from perturbgen.predict import PredictSettings

    if "seed" in spec.settings:
        raise ConfigError(
            f"methods.{name}: the seed of a run is the comparison's", fix="seeds = [0, 1]"
        )
    found = load_settings(
        PredictSettings, base=spec.settings, fix="perturbgen predict --help says what they mean"
    )
    if len(found.estimators) != 1:
        raise ConfigError(
            f"methods.{name}: {len(found.estimators)} estimators",
            expected="one",
            fix="a method for each estimator",
        )
    return found


def require_honest(
    methods: list[Method], folds: list[Fold], conditions: pd.MultiIndex
) -> dict[str, dict[str, str | int]]:
    """Refuse a run that has seen what a fold withholds; returns what the report says of the runs, by method."""
    about: dict[str, dict[str, str | int]] = {}
    for method in methods:
        if method.trained is None:
            continue
        seen = method.trained.seen()
        for fold in folds:
            withheld = conditions.delete(fold.train)
            method.trained.require_unseen(
                f"methods.{method.name}", seen, withheld, f"{fold.split} ({fold.name})"
            )
        about[method.name] = {
            "run": method.spec.run,
            "parameters": str(method.record["runs"][0]),
            "cells": method.spec.cells,
            "conditions seen in training": len(seen),
            "of those withheld": 0,
        }
    return about


def _baseline(name: str, spec: MethodSettings, settings: CompareSettings) -> Method:
    """A baseline, with its resolved settings and the files that it uses."""
    data = settings.data
    entry = find_baseline(spec.baseline)
    fix = f"perturbgen baselines {spec.baseline} lists its settings"
    resolved = load_settings(entry.settings_class, base=spec.settings, fix=fix)
    files: dict[str, Path] = {}
    for key in _EXTRAS:
        if getattr(data, key) and key in (*entry.needs, *entry.uses):
            files[key] = find(data, getattr(data, key), key).absolute()
        elif key in entry.needs:
            raise ConfigError(
                f"methods.{name}: {spec.baseline} needs {key}", fix=f"data.{key} = FILE"
            )
    record = {
        "baseline": entry.where,
        "settings": resolved.model_dump(mode="json"),
        "files": {key: file_hash(path) for key, path in files.items()},
    }
    if not {*entry.needs} - {"smiles"}:
        make(
            spec.baseline, **spec.settings, **_smiles_for(files)
        )  # members of a blend are checked here
    return Method(name, spec, files, record, entry.random, entry.intervals, data.statistic)


def _smiles_for(files: Mapping[str, Path]) -> dict[str, Any]:
    """SMILES, where there is a file of them."""
    return {"smiles": read_smiles(files["smiles"])} if "smiles" in files else {}
