"""A tiny screen with a known truth."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perturbgen.core.config import merge
from perturbgen.data import write_h5ad
from perturbgen.l1000.embedder import EmbedSettings
from perturbgen.simulation.screen import screen_anndata, screen_settings


@pytest.fixture(scope="session")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("screen") / "screen.h5ad"
    write_h5ad(
        screen_anndata(screen_settings("tiny", overrides=["biology.strength=4"]), seed=0), path
    )
    return path


@pytest.fixture
def settings(screen: Path) -> Callable[..., EmbedSettings]:
    """A function from overrides to the settings of a tiny run."""

    def make(*overrides: str, **sections: Any) -> EmbedSettings:
        base = {
            "data": {"path": str(screen), "validation": 0.2, "test": 0.2, "types": ["trt_cp"]},
            "model": {"size": 8, "encoder": {"depth": 2, "growth": 8}},
            "training": {"epochs": 4, "batch_size": 16},
        }
        return EmbedSettings.load(base=merge(base, sections), overrides=overrides)

    return make
