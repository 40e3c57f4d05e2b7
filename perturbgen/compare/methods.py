"""A method by its settings: what its predictions depend on, and the Predictor itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import pandas as pd

import perturbgen
from perturbgen.baselines import Predictor, find_baseline, make
from perturbgen.compare.folds import Fold
from perturbgen.compare.settings import CompareSettings, MethodSettings, TableSettings
from perturbgen.compare.tables import read_effects
from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.core.runs import file_hash, package_version
from perturbgen.data import read_h5ad, read_smiles
from perturbgen.evaluate import METRICS, interpolated_duplicate

if TYPE_CHECKING:
    from perturbgen.predict import PredictSettings, RunFiles

# The code that predictions and scores depend on: rooms and files of the package. Whatever reads or
# computes numbers is here, so that a kept result is never one of other code; a test compares the
# lists with what is imported. Settings are not: what they say is in the key itself.
_FITTING: Final = (
    "baselines",
    "compare/folds.py",
    "compare/grid.py",
    "compare/methods.py",
    "compare/tables.py",
    "core/extensions.py",
    "core/h5ad.py",
    "core/stats.py",
    "core/tables.py",
    "data",
    "de",
    "evaluate/duplicate.py",
    "evaluate/labels.py",
)
_GENERATING: Final = (*_FITTING, "models", "nn", "predict", "generate", "train")
_SCORING: Final = ("core/extensions.py", "core/stats.py", "evaluate")
_LIBRARIES: Final = ("numpy", "scipy", "pandas", "scikit-learn", "xgboost", "torch", "rdkit")
_EXTRAS: Final = ("smiles", "pseudobulk")  # files of data.* that some baselines need or can use


@dataclass(frozen=True)
class Method:
    """One method: what its predictions depend on (``record``), and the files to make it from.

    A method that is ``random`` is fitted once a seed.
    """

    name: str
    spec: MethodSettings
    record: Mapping[str, Any]
    statistic: str
    files: Mapping[str, Path] = field(default_factory=dict)
    random: bool = False
    intervals: bool = False
    trained: RunFiles | None = None

    @classmethod
    def all(cls, settings: CompareSettings) -> list[Method]:
        """All methods, checked: a wrong name, setting or file is told before anything is fitted."""
        methods = []
        for name, spec in settings.all_methods.items():
            kind = _from_file if spec.predictions else _from_run if spec.run else _from_baseline
            methods.append(kind(name, spec, settings.data))
        return methods

    @property
    def code_versions(self) -> tuple[str, str]:
        """Hashes of the code that its predictions depend on, and of the code that scores them."""
        fitting = _code_version(_GENERATING if self.trained else _FITTING)
        return fitting, _code_version(_SCORING)

    def make(self, measured: pd.DataFrame) -> Predictor:
        """The Predictor, not fitted yet; ``measured`` is what ground truth shows."""
        if self.trained:
            adapt = "estimators" not in self.spec.settings
            return self.trained.predictor(_run_settings(self.name, self.spec), adapt=adapt)
        if self.spec.predictions:
            return _Tabulated(self.files["predictions"], self.statistic, self.spec)
        given: dict[str, Any] = _smiles_for(self.files)
        if "truth" in find_baseline(self.spec.baseline).needs:
            given["truth"] = measured
        if "pseudobulk" in self.files:
            given["pseudobulk"] = read_h5ad(self.files["pseudobulk"])
        return make(self.spec.baseline, **given, **self.spec.settings)

    def require_unseen(
        self, folds: list[Fold], conditions: pd.MultiIndex
    ) -> dict[str, str | int] | None:
        """Refuse a run that has seen what a fold withholds; what the report says of it, if one."""
        if self.trained is None:
            return None
        # Asked of the cells it was trained on, not of what its configuration says.
        seen = self.trained.seen()
        for fold in folds:
            where = f"{fold.split} ({fold.name})"
            withheld = conditions.delete(fold.train)
            self.trained.require_unseen(f"methods.{self.name}", seen, withheld, where)
        note = self.trained.latent_note()
        return {
            "run": self.spec.run,
            **({"latent space": note} if note else {}),
            "parameters": str(self.record["runs"][0]),
            "cells": self.spec.cells,
            "conditions seen in training": len(seen),
            "of those withheld": 0,
        }


def extensions_of(settings: CompareSettings) -> list[str]:
    """The baselines and metrics of other packages in a comparison, and where they are from."""
    asked = settings.score
    chosen = asked.chosen(layout=bool(asked.layout))
    named = [spec.baseline for spec in settings.all_methods.values() if spec.baseline]
    found = [find_baseline(name).extension for name in named]
    found += [METRICS.extension(metric.name) for metric in chosen if metric.code]
    return [str(extension) for extension in found if extension is not None]


class _Tabulated:
    """Predictions that are there already: rows and genes are chosen by label, nothing is learnt.

    With ``interpolate`` they are a duplicate experiment, whose noise is taken out of the genes that
    do not respond.
    """

    def __init__(self, path: Path, statistic: str, spec: MethodSettings) -> None:
        self.path, self.interpolate = path, spec.interpolate
        self.table = read_effects(path, statistic=statistic, layer=spec.layer)

    def fit(self, train: pd.DataFrame, *, rng: np.random.Generator) -> Self:
        """Keep the genes."""
        self.genes = train.columns
        return self

    def predict(self, conditions: pd.MultiIndex | pd.DataFrame) -> pd.DataFrame:
        """The rows asked for."""
        index: pd.Index = (
            pd.MultiIndex.from_frame(conditions)
            if isinstance(conditions, pd.DataFrame)
            else conditions
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


def _from_file(name: str, spec: MethodSettings, data: TableSettings) -> Method:
    """Predictions from a file."""
    path = data.find(spec.predictions, "file of predictions").absolute()
    told = spec.model_dump(mode="json", exclude={"predictions"})
    # By content, not by name: a file that moved keeps its results, one that changed does not.
    record = told | {"predictions": file_hash(path), "statistic": data.statistic}
    return Method(name, spec, record, data.statistic, {"predictions": path})


def _from_run(name: str, spec: MethodSettings, data: TableSettings) -> Method:
    """A trained run, by its parameters, the cells it predicts among and how it predicts."""
    from perturbgen.predict import RunFiles

    runs = [data.find_run(path) for path in (spec.run, spec.calibration_run) if path]
    cells = data.find(spec.cells, "file of cells").absolute()
    columns = data.find(spec.columns, "column map").absolute() if spec.columns else None
    other = runs[1] if len(runs) > 1 else None
    files = RunFiles(runs[0], cells, other, columns).require()
    # Without the seed, which is the job's.
    settings = _run_settings(name, spec).model_dump(mode="json", exclude={"seed"})
    record = {"settings": settings, **files.record()}
    return Method(name, spec, record, data.statistic, random=True, trained=files)


def _run_settings(name: str, spec: MethodSettings) -> PredictSettings:
    """How a run predicts: one estimator, the comparison's own seeds."""
    from perturbgen.predict import PredictSettings

    if "seed" in spec.settings:
        raise ConfigError(
            f"methods.{name}: the seed of a run is the comparison's", fix="seeds = [0, 1]"
        )
    fix = "perturbgen predict --help says what they mean"
    found = PredictSettings.load(base=spec.settings, fix=fix)
    if len(found.estimators) != 1:
        raise ConfigError(
            f"methods.{name}: {len(found.estimators)} estimators",
            expected="one",
            fix="a method for each estimator",
        )
    return found


def _from_baseline(name: str, spec: MethodSettings, data: TableSettings) -> Method:
    """A baseline, with its resolved settings and the files that it uses."""
    entry = find_baseline(spec.baseline)
    # Resolved, so that a default that changes in a later version is another method.
    fix = f"perturbgen baseline {spec.baseline} lists its settings"
    resolved = entry.settings_class.load(base=spec.settings, fix=fix)
    files: dict[str, Path] = {}
    for key in _EXTRAS:
        if getattr(data, key) and key in (*entry.needs, *entry.uses):
            files[key] = data.find(getattr(data, key), key).absolute()
        elif key in entry.needs:
            raise ConfigError(
                f"methods.{name}: {spec.baseline} needs {key}", fix=f"data.{key} = FILE"
            )
    record: dict[str, Any] = {
        "baseline": entry.where,
        "settings": resolved.model_dump(mode="json"),
        "files": {key: file_hash(path) for key, path in files.items()},
    }
    if entry.extension is not None:
        # What is kept of a method is never that of other code of its author's.
        record["code"] = entry.extension.code
    if not {*entry.needs} - {"smiles"}:
        # Made once and thrown away: the settings of a blend's members are checked by making them.
        make(spec.baseline, **spec.settings, **_smiles_for(files))
    return Method(name, spec, record, data.statistic, files, entry.random, entry.intervals)


def _smiles_for(files: Mapping[str, Path]) -> dict[str, Any]:
    """SMILES, where there is a file of them."""
    return {"smiles": read_smiles(files["smiles"])} if "smiles" in files else {}


@lru_cache
def _code_version(parts: tuple[str, ...]) -> str:
    """A hash of the sources of some rooms of the package, and of the libraries that compute."""
    root = Path(perturbgen.__file__).parent
    found = hashlib.sha256(json.dumps([package_version(name) for name in _LIBRARIES]).encode())
    for part in parts:
        room = root / part
        for path in sorted(room.rglob("*.py")) if room.is_dir() else [room]:
            found.update(path.read_bytes())
    return found.hexdigest()
