"""Weights that somebody else learned, for the networks of :mod:`perturbgen.nn.vision`."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perturbgen.errors import ConfigError, InputError, shorten
from perturbgen.files import require_file
from perturbgen.nn.channels import resized

CLASSIFIER = ("fc.", "classifier.", "class_layers.")
WRAPPERS = ("module.", "state_dict.", "backbone.", "encoder.")


def load_backbone(network: nn.Module, path: str | Path) -> None:
    """Fill a backbone from a state file: torchvision's, MONAI's, or of the same network without its classifier.

    A first convolution for other channels gets the mean of its weights for each. Every other part must be there and
    fit: a network that is half learned and half drawn looks as if it were learned.
    """
    wanted, found = network.state_dict(), states(path)
    first = next(name for name, value in wanted.items() if value.ndim == 4)
    if first in found and found[first].ndim == 4:
        found[first] = resized(found[first], wanted[first].shape[1])
    missing = [name for name, value in wanted.items() if not fits(found.get(name), value, name)]
    if missing:
        raise ConfigError(
            f"{path} has no {shorten(missing, 3)} of the shape of this network ({len(missing)} of {len(wanted)} parts)",
            expected="the state of the same backbone", fix="model.backbone as the file's",
        )  # fmt: skip
    network.load_state_dict({name: found.get(name, value) for name, value in wanted.items()})


def fits(found: Tensor | None, wanted: Tensor, name: str) -> bool:
    """A part is there and of the right shape; how many batches a normalisation has seen need not be there."""
    if found is None:
        return name.endswith("num_batches_tracked")
    return found.shape == wanted.shape


def states(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file under the names that MONAI's networks use, without a classifier."""
    path = require_file(path, "file of weights")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read as weights: {str(error).partition('. ')[0]}",
                         expected="a dictionary of tensors that torch.save wrote",
                         cause="a copy that broke off, or a whole pickled model",
                         fix="torch.save(model.state_dict(), path)") from None  # fmt: skip
    while isinstance(content, dict) and isinstance(content.get("state_dict", content.get("model")), dict):
        content = content.get("state_dict", content.get("model"))
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(
            f"{path} holds no dictionary of tensors", expected="a state, as torch.save(model.state_dict(), path) writes"
        )
    named = {renamed(str(name)): value for name, value in content.items()}
    return without_bias({name: value for name, value in named.items() if not name.startswith(CLASSIFIER)})


def without_bias(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """MONAI's older residual networks add a bias before batch normalisation, which its running mean can swallow."""
    for name in [name for name in found if name.endswith("downsample.0.bias")]:
        mean = name.replace("downsample.0.bias", "downsample.1.running_mean")
        if mean in found:
            found[mean] = found[mean] - found[name]
        del found[name]
    return found


def renamed(name: str) -> str:
    """A part's name without wrappers; torchvision's dense layers are called as MONAI's."""
    while name.startswith(WRAPPERS):
        name = name.split(".", 1)[1]
    return re.sub(r"(denselayer\d+)\.(norm|relu|conv)\.?([12])\.", r"\1.layers.\2\3.", name)
