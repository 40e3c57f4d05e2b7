"""The models by name, those of other packages among them.

A model of somebody else is a subclass of :class:`~perturbgen.models.base.LatentModel` (or of one of
ours). Keyword-only parameters of its ``__init__`` are its settings, in ``[model.settings]``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import isabstract, signature
from types import FunctionType
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import Module

from perturbgen.core.extensions import Catalogue, Extension, settings_of
from perturbgen.models.base import LatentModel
from perturbgen.models.blueprint import Blueprint
from perturbgen.models.dgd import DGD
from perturbgen.models.gaussian_vae import GaussianVAE
from perturbgen.models.nbvae import NBVAE


def _adopt(extension: Extension) -> type[LatentModel]:
    found = extension.load()
    if not (isinstance(found, type) and issubclass(found, LatentModel)):
        raise extension.broken(
            "is another class" if isinstance(found, type) else f"is of type {type(found).__name__}",
            expected="a subclass of perturbgen.models.LatentModel, or of one of its models",
        )
    if isabstract(found):
        absent = ", ".join(sorted(found.__abstractmethods__))
        raise extension.broken(f"does not say how to do: {absent}")
    return found


MODELS: Final = Catalogue[type[LatentModel]](
    "model", {"nbvae": NBVAE, "dgd": DGD, "gaussian_vae": GaussianVAE}, _adopt
)


def own_settings(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a model of somebody else, resolved; ours have theirs in [model] itself."""
    found = MODELS[kind]
    # What a base of ours takes comes from [model] itself.
    ours = [base for base in found.__mro__ if base.__module__.startswith("perturbgen.")]
    taken = {"category"}.union(*(signature(base).parameters for base in ours))
    parameters = settings_of(found, without=taken, only_keywords=True)
    fix = f"settings of {kind} are the keyword-only parameters of its class"
    return dict(parameters.load(base=given, fix=fix))


def build_model(kind: str, blueprint: Blueprint) -> LatentModel:
    """The model of a name; what one of somebody else breaks is told with its name."""
    found = MODELS[kind]
    if kind in MODELS.built_in:
        return found.build(blueprint)
    extension = MODELS.extension(kind)
    with extension.blamed("cannot be built"):
        model = found.build(blueprint)
    if not isinstance(model, LatentModel):
        raise extension.broken(
            f"builds something of type {type(model).__name__}", expected="a LatentModel"
        )
    return _watched(model, extension, len(blueprint.share))


def _watched(model: LatentModel, extension: Extension, n_genes: int) -> LatentModel:
    """The model, whose answers are checked where the loop, a judge or a generator asks for them."""
    width = getattr(model, "n_latent", None)
    if not isinstance(width, int):
        raise extension.broken("has no n_latent", expected="self.n_latent, how wide z is")

    def terms(found: Any, batch: Any, *_: Any) -> None:
        if not isinstance(found, dict) or not found:
            raise extension.broken(
                f"forward gives something of type {type(found).__name__}", expected="named terms"
            )
        for name, term in found.items():
            _require(extension, f"its term {name!r}", term, (len(batch.index),))
        unknown = [name for name in model.annealed if name not in found]
        if unknown:
            raise extension.broken(f"has no term {unknown[0]!r} to anneal", expected=str([*found]))

    def points(found: Any, batch: Any, *_: Any) -> None:
        _require(extension, "encode", found, (len(batch.codes), width), finite=True)

    def draws(found: Any, codes: Tensor, *_: Any) -> None:
        _require(extension, "sample", found, (len(codes), n_genes), finite=True)
        if bool((found < 0).any()):
            raise extension.broken("samples counts below 0")

    checks: dict[str, Callable[..., None]] = {"forward": terms, "encode": points, "sample": draws}
    for name in {*checks, *_own_methods(type(model))}:
        setattr(model, name, _checked(getattr(model, name), name, checks.get(name), extension))
    return model


def _own_methods(kind: type[LatentModel]) -> set[str]:
    """The methods that are not ours, and that others may call."""
    theirs = [base for base in kind.__mro__ if not base.__module__.startswith("perturbgen.")]
    ours = {name for name in dir(LatentModel) if name[0] != "_" and name not in dir(Module)}
    return {
        name
        for base in theirs
        for name, method in vars(base).items()
        if name in ours and isinstance(method, FunctionType)
    }


def _checked(
    method: Callable[..., Any], name: str, check: Callable[..., None] | None, extension: Extension
) -> Callable[..., Any]:
    @wraps(method)
    def call(*given: Any, **named: Any) -> Any:
        with extension.blamed(f"fails in {name}"):
            found = method(*given, **named)
        if check is not None:
            check(found, *given)
        return found

    return call


def _require(
    extension: Extension, what: str, found: Any, shape: tuple[int, ...], *, finite: bool = False
) -> None:
    if not isinstance(found, torch.Tensor) or tuple(found.shape) != shape:
        had = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise extension.broken(f"{what} gives {had}", expected=f"a tensor of shape {shape}")
    # A loss that is not finite is told by the loop, with the cells and the cause.
    if finite and not bool(torch.isfinite(found).all()):
        raise extension.broken(f"{what} gives values that are not finite")
