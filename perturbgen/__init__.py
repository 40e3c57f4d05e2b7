"""perturbgen: what will this perturbation do to these cells, and how sure can we be?

The names that a script needs most, each loaded when it is first used, so that importing the package
is cheap. A room (``perturbgen.data``, ``perturbgen.de``, ...) has more behind its own door; the
verbs ``predict.predict``, ``train.train`` and ``compare.compare`` stand there only, since their
rooms have the same names.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Threads that wait for each other sleep. By default they spin, and where other programs share the
# cores the one that is waited for is not running: a training step took 170 to 210 ms in place of 28
# to 35. Read by OpenMP when torch is loaded; what the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_FACE = {
    "data": "CountStore Split pseudobulk read_competition read_h5ad read_openproblems write_h5ad",
    "de": "DETable flavour_table limma_table voom",
    "objects": "CellModel DGD GaussianVAE NBVAE",
    "scores": "Scores score score_cells",
    "contract": "check_extension",
    "models": "",
    "train": "RunSettings load_run",
    "generate": "CellSampler",
    "predict": "GenerativePredictor PredictSettings fit_ensemble",
    "baselines": "Baseline Predictor",
    "evaluate": "METRICS Scorecard report_page scorecard",
    "retrieval": "consistency knn_mixing match_modalities nearest percent_replicating retrieve",
    "profiles": "Profiles read_profiles",
    "l1000": "GctxFile extract modz wtcs",
    "simulation": "SimulatedExperiment SimulationSettings load_world simulate",
    "compare": "CompareSettings",
    "images": "",
    "submission": "",
}
_ROOM_OF = {name: room for room, names in _FACE.items() for name in names.split()}

__all__ = ["__version__", *_ROOM_OF, *_FACE]


def __getattr__(name: str) -> Any:
    if name in _FACE:
        return import_module(f"{__name__}.{name}")
    if name in _ROOM_OF:
        return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    raise AttributeError(f"perturbgen has no name {name!r}; dir(perturbgen) lists what it has")


def __dir__() -> list[str]:
    return sorted(__all__)
