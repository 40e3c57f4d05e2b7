"""All that a trained run predicts: by every estimator, every latent route, and in the seed's way;
kept in a file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from seed_way import seed_ways

from perturbgen.core.export import PARQUET
from perturbgen.core.files import atomic_path
from perturbgen.predict import PredictSettings, predict

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.generate import CellSampler
    from perturbgen.train import TrainedRun

KEY = ["cell_type", "compound"]
NAMES = {"nbvae": "cNB-VAE", "dgd": "cDGD"}
ROUTES = ("prior", "posterior")
CALIBRATION = "calibration | "  # starts the names of predictions of hidden known compounds
log = logging.getLogger("perturbgen.experiments.op3_semireal")
Predictions = Mapping[str, pd.DataFrame]


class Generative:
    """All predictions of a run: by every estimator, every latent route, and in the seed's way."""

    def __init__(
        self,
        trained: TrainedRun,
        cells: AnnData,
        wanted: pd.DataFrame,
        sampler: CellSampler,
        *,
        latent: str,
        replicates: int,
        seed: int,
        flavour: str = "kaggle",
    ) -> None:
        self.trained, self.replicates, self.seed = trained, replicates, seed
        self.base = {"seed": seed, "latent": latent, "replicates": replicates, "flavour": flavour}
        self.cells, self.wanted, self.sampler = cells, wanted, sampler
        self.name = NAMES[trained.settings.model.kind]

    def __call__(self) -> Predictions:
        """Predictions by name; those of the hidden known conditions have a name that says so."""
        found = seed_ways(self.trained, self.cells, self.wanted, self.sampler, self.seed)
        return self.named(found | self.estimators() | self.routes())

    def named(self, found: Predictions) -> Predictions:
        """Predictions named after the model."""
        hidden = {name for name in found if not is_wanted(name)}
        named = {
            f"{self.name}: {name}": values for name, values in found.items() if name not in hidden
        }
        return named | {
            f"{CALIBRATION}{self.name}: {name.removeprefix(CALIBRATION)}": found[name]
            for name in hidden
        }

    def predict(
        self, estimators: tuple[str, ...], keep: tuple[int, ...] = (), **options: Any
    ) -> Any:
        """The pipeline with the experiment's settings, but for the options."""
        settings = PredictSettings(estimators=estimators, **(self.base | options))
        return predict(
            self.trained, self.cells, self.wanted, settings, sampler=self.sampler, keep=keep
        )

    def estimators(self) -> dict[str, pd.DataFrame]:
        """Averages on the way, then everything after all replicates, and the shrunk ones of the
        hidden conditions.
        """
        k = self.replicates
        names = {
            "mean_t": f"t averaged, K = {k}",
            "anchored_t": f"anchored t, K = {k}",
            "plug_in": "plug-in t",
            "shrunk": "anchored t, shrunk",
            "shrunk_mean": "t averaged, shrunk",
            "shrunk_plug_in": "plug-in t, shrunk",
        }
        steps = tuple(sorted({1, 2, 6} & set(range(1, k))))
        full = self.predict(tuple(names), steps)
        log.info("%s: checks\n%s\nshrinkage\n%s", self.name, full.checks, full.shrinkage["shrunk"])
        found = {
            "one draw" if n == 1 else f"t averaged, K = {n}": v["mean_t"]
            for n, v in full.by_replicates.items()
        }
        if 2 in full.by_replicates:
            found["anchored t, K = 2"] = full.by_replicates[2]["anchored_t"]
        found |= {names[name]: values for name, values in full.values.items()}
        return found | {
            CALIBRATION + names[name]: full.calibrated[name]
            for name in ("shrunk", "shrunk_mean", "shrunk_plug_in")
        }

    def routes(self) -> dict[str, pd.DataFrame]:
        """Two replicates with latent points from elsewhere."""
        return {
            f"anchored t, K = 2, latent {route}": self.predict(
                ("anchored_t",), latent=route, replicates=2
            ).values["anchored_t"]
            for route in ROUTES
        }


def is_wanted(name: str) -> bool:
    """Whether predictions of this name are of the withheld conditions."""
    return not name.startswith(CALIBRATION)


def kept(path: Path, make: Callable[[], Predictions]) -> dict[str, pd.DataFrame]:
    """Predictions by name from a file, made and written where there is none."""
    if not path.exists():
        table = pd.concat(make(), names=["prediction"]).astype(np.float32)
        with atomic_path(path) as part:
            table.reset_index().to_parquet(part, index=False, **PARQUET)
    table = pd.read_parquet(path).set_index(["prediction", *KEY]).astype(float)
    return {str(name): table.loc[name] for name in table.index.get_level_values(0).unique()}
