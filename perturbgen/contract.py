"""What every model, metric and baseline promises, tried on small tables and cells.

For authors of extensions, in a test of theirs or as ``perturbgen check-extension``:

>>> from perturbgen.contract import check_extension
>>> def test_it_keeps_its_promises():
...     check_extension("my_package:Mine")
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, Final

from perturbgen.baselines import REGISTRY, baseline_breaches
from perturbgen.core.errors import ConfigError, ExtensionError, PerturbgenError, suggest
from perturbgen.core.extensions import GROUPS, Catalogue, Extension, installed
from perturbgen.evaluate import METRICS, Metric, metric_breaches
from perturbgen.models import MODELS, LatentModel
from perturbgen.train import model_breaches

_Catalogues = dict[str, Catalogue[Any]]
_CATALOGUES: Final[_Catalogues] = {"model": MODELS, "metric": METRICS, "baseline": REGISTRY}


def check_extension(name: str, kind: str | None = None) -> None:
    """Hold an extension, an entry point or ``module:Object``, to all that its kind promises.

    Every promise that it breaks is in the error. ``kind`` is model, metric or baseline; where it is
    not told, it is what the object looks like.
    """
    for extension in find_extensions([name], kind):
        found = breaches(extension)
        if found:
            listed = "".join(f"\n  {number}. {text}" for number, text in enumerate(found, 1))
            raise ExtensionError(f"{extension} breaks {len(found)} of its promises:{listed}")


def breaches(extension: Extension) -> list[str]:
    """What an extension breaks, in words; nothing where it can be used."""
    found: list[str] = []
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            with extension.blamed("fails"):
                _CATALOGUES[extension.kind].extension(extension.name)  # told where names clash
                found.extend(_TRIALS[extension.kind](extension))
        except PerturbgenError as error:  # what goes on after it cannot be tried
            said = error.what.removeprefix(f"{extension} ")
            found.append(f"{said}; expected: {error.expected}" if error.expected else said)
    if printed.getvalue().strip():
        first = printed.getvalue().strip().partition("\n")[0]
        found.append(f"prints ({first[:60]!r}): logging.getLogger(__name__) is for that")
    return found


def find_extensions(names: Sequence[str] = (), kind: str | None = None) -> list[Extension]:
    """The extensions of these names, or all that are installed, clashes included."""
    if kind is not None and kind not in GROUPS:
        raise ConfigError(f"there is no kind {kind!r}", fix=suggest(kind, GROUPS))
    kinds = list(GROUPS) if kind is None else [kind]
    every = [extension for one in kinds for extension in installed(one)]
    if not names:
        return every
    return [extension for name in names for extension in _named(name, every, kind)]


def _named(name: str, every: list[Extension], kind: str | None) -> list[Extension]:
    """Those of a name: an entry point may be of several kinds."""
    if ":" in name:
        return [Extension(kind or _looks_like(Extension("extension", name, name)), name, name)]
    found = [extension for extension in every if extension.name == name]
    if not found:
        known = [extension.name for extension in every]
        raise ConfigError(
            f"no package names an extension {name!r}: {suggest(name, known)}",
            expected="an entry point, or module:Object",
        )
    return found


def _looks_like(extension: Extension) -> str:
    """The kind of an object that nobody has named one of."""
    found = extension.load()
    if isinstance(found, Metric):
        return "metric"
    if isinstance(found, type):
        if issubclass(found, LatentModel):
            return "model"
        if _predicts(found):
            return "baseline"
        raise extension.broken("is a class of no kind that is known", expected=_EXPECTED)
    if callable(found):  # a function that makes one of them
        with extension.blamed("cannot be called"):
            made = found()
        if isinstance(made, Metric):
            return "metric"
        if _predicts(made):
            return "baseline"
        raise extension.broken(f"makes a {type(made).__name__}", expected=_EXPECTED)
    raise extension.broken(f"is of type {type(found).__name__}", expected=_EXPECTED)


def _predicts(found: Any) -> bool:
    return all(callable(getattr(found, name, None)) for name in ("fit", "predict"))


_EXPECTED: Final = (
    "a subclass of perturbgen.models.LatentModel (a torch Module alone is not one), a "
    "perturbgen.evaluate.Metric, or a baseline: a class with fit(train, *, rng) and "
    "predict(conditions)"
)
_TRIALS: Final[dict[str, Callable[[Extension], Iterator[str]]]] = {
    "model": model_breaches,
    "metric": lambda extension: metric_breaches(METRICS[extension.name]),
    "baseline": baseline_breaches,
}
