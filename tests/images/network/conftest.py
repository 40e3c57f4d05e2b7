from pathlib import Path

import pytest

from perturbgen.images.network import IMAGES
from perturbgen.images.network.settings import ImageSettings
from perturbgen.simulation.images import write_rxrx1

EXPERIMENTS = {
    "HUVEC-01": "train",
    "HUVEC-02": "train",
    "HUVEC-03": "test",
    "RPE-01": "train",
    "RPE-02": "test",
}


@pytest.fixture(scope="session")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five experiments of two cell types, 16 x 16 pixels, stained differently."""
    root = tmp_path_factory.mktemp("images") / "rxrx1"
    return write_rxrx1(root, size=16, sirnas=2, controls=1, stain=0.5, experiments=EXPERIMENTS)


@pytest.fixture(scope="session")
def settings(plates: Path) -> ImageSettings:
    """A network so small that an epoch takes a tenth of a second."""
    return ImageSettings.model_validate(
        {
            "data": {"path": plates},
            "model": {"widths": [4, 8], "embedding": 6},
            "training": {"epochs": 2, "batch_size": 16, "learning_rate": 0.01},
            "board": {"every": 2, "cells": 20},
        }
    )


@pytest.fixture(scope="session")
def trained(settings: ImageSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    return IMAGES.train(settings, runs=tmp_path_factory.mktemp("runs"), accelerator="cpu")
