"""R's limma and edgeR through rpy2: the reference that the native backend is held against."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from importlib import resources
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import null_space

from perturbgen.core.errors import ConfigError, DesignError, MissingDependencyError, PerturbgenError
from perturbgen.de.counts import as_matrix
from perturbgen.de.design import Design
from perturbgen.de.native import FitMethod, FitResult
from perturbgen.de.normalise import METHODS
from perturbgen.de.table import DETable
from perturbgen.de.trend import Trend
from perturbgen.de.voom import MeanVariance

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

_Array = NDArray[np.float64]

_R_PACKAGES = {"limma": "r-bioc-limma", "edgeR": "r-bioc-edger", "statmod": "r-cran-statmod"}


def fit_r(
    counts: _Array,
    design: Design,
    weights: _Array,
    method: FitMethod,
    tick: Callable[[float], None] | None = None,
) -> FitResult:
    """The fit of ``fit_native``, made by R: one call for the fit, one for all contrasts."""
    design.require_df()
    columns, wanted = design.matrix[:, design.kept], weights[:, design.kept]
    exact = method.contrasts == "exact"
    if exact:
        columns = _contrasts_as_columns(columns, wanted)
    span = Trend.span(method.span, counts.shape[1])  # all rows, as limma's chooseLowessSpan
    offset = {} if design.offset is None else {"offset": design.offset}
    normalise = METHODS[method.normalise]
    fit = _call("limma_fit", counts.T, columns, normalise=normalise, span=span, **offset)
    tested = {"tested": len(wanted)} if exact else {"contrasts": wanted.T}
    answer = _call("limma_test", fit, robust=method.robust, trend=method.trend, **tested)
    parts = zip(answer.names, answer, strict=True)
    found = {str(name): np.array(part, dtype=np.float64) for name, part in parts}
    if tick is not None:
        tick(counts.shape[1])
    trend = Trend(found["trend_x"], found["trend_y"])
    names = [field.name for field in fields(FitResult) if field.name in found]
    return FitResult(
        **{name: found[name].T for name in names},  # R has genes in rows
        mean_variance=MeanVariance(found["mean"], found["root_sd"], trend),
    )


def _contrasts_as_columns(design: _Array, weights: _Array) -> _Array:
    """The same model with other coefficients, of which the first are the contrasts themselves.

    With M = [weights; a basis of their null space] the coefficients M b belong to the design X
    M^-1. It is what making the control the reference level does, and lets R test exact contrasts
    without ``contrasts.fit``.
    """
    if np.linalg.matrix_rank(weights) < len(weights):
        raise DesignError("the contrasts are not independent of one another")
    return np.asarray(design @ np.hstack([np.linalg.pinv(weights), null_space(weights)]))


def _call(function: str, *arguments: Any, **options: Any) -> Any:
    """Call ``limma_fit.R``; what R says goes to our log, and its errors become ours."""
    limma = _start_r()  # before rpy2 is imported, so that what is missing is told
    from rpy2.rinterface_lib import callbacks
    from rpy2.rinterface_lib.embedded import RRuntimeError
    from rpy2.robjects import numpy2ri

    def to_r(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        return numpy2ri.numpy2rpy(np.asfortranarray(value, dtype=np.float64))

    given = [to_r(value) for value in arguments]
    named = {key: to_r(value) for key, value in options.items()}
    try:
        with callbacks.replace_in_module(callbacks, "consolewrite_warnerror", _log_chatter):
            called = getattr(limma, function)
            value, warnings, messages = limma.call_quietly(called, *given, **named)
    except RRuntimeError as error:
        raise PerturbgenError(f"R failed in {function}: {' '.join(str(error).split())}") from None
    for text in warnings:
        log.warning("R: %s", text.strip())
    for text in messages:
        _log_chatter(text)
    return value


def _log_chatter(text: str) -> None:
    """What R would print."""
    log.debug("R: %s", text.strip())


@lru_cache  # R starts once in a process
def _start_r() -> Any:
    """R with the functions of ``limma_fit.R``, or one error that names all that is missing."""
    missing = _missing_parts()
    if missing:
        raise MissingDependencyError(
            f"backend='r' lacks {', '.join(missing)}",
            expected="R, its packages limma, edgeR and statmod, and an rpy2 that fits this R",
            fix=f"apt-get install r-base-core r-base-dev {' '.join(_R_PACKAGES.values())}; "
            "pip install 'perturbgen[r]'; "
            "or use backend='native', which gives the same numbers without R",
        )
    from rpy2.robjects.packages import STAP

    code = resources.files("perturbgen.de").joinpath("limma_fit.R").read_text(encoding="utf-8")
    return STAP(code, "perturbgen_limma")


def _missing_parts() -> list[str]:
    """Everything that the R backend needs and does not find."""
    if shutil.which("R") is None:
        return ["R", *(["rpy2"] if find_spec("rpy2") is None else []), *_R_PACKAGES]
    problem = _import_problem()
    return [*([problem] if problem else []), *_absent_packages()]


def _import_problem() -> str | None:
    """Why rpy2 cannot be used, if it cannot."""
    if find_spec("rpy2") is None:
        return "rpy2"
    before = os.environ.get("LD_LIBRARY_PATH")
    try:
        import rpy2.robjects  # noqa: F401
    except Exception as error:  # noqa: BLE001
        # a wrong rpy2 for this R fails in many ways, all with one remedy
        return f"an rpy2 that fits this R (importing it failed: {type(error).__name__}: {error})"
    finally:
        # R sets it as it starts; a child process could find the wrong libpython by it, and die
        os.environ.pop("LD_LIBRARY_PATH", None)
        if before is not None:
            os.environ["LD_LIBRARY_PATH"] = before
    return None


def _absent_packages() -> list[str]:
    """R packages that are not installed, asked of R itself."""
    # by Rscript, which answers even where rpy2 does not work
    names = ",".join(f'"{name}"' for name in _R_PACKAGES)
    code = f"for (p in c({names})) if (!requireNamespace(p, quietly = TRUE)) cat(p, '')"
    try:
        answer = subprocess.run(
            ["Rscript", "-e", code], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return list(_R_PACKAGES)
    return [f"the R package {name}" for name in answer.stdout.split()]


def compare_backends(
    counts: AnnData, number: int, make_table: Callable[[AnnData, str], DETable]
) -> list[dict[str, Any]]:
    """The largest differences between the backends' tables of some genes, and where they are.

    ``make_table`` is given counts of ``number`` genes and the name of a backend.
    """
    if number < 10:
        what = f"{number} genes are too few to compare on"
        raise ConfigError(what, expected="at least 10: voom needs a trend")
    # spread evenly over the range of total counts, the most expressed gene among them
    order = np.argsort(-as_matrix(counts)[0].sum(axis=0), kind="stable")
    evenly = np.linspace(0, len(order) - 1, min(number, len(order))).astype(int)
    few = counts[:, np.sort(order[evenly])].copy()
    native, through_r = make_table(few, "native"), make_table(few, "r")
    rows = []
    for name in DETable.STATISTICS:
        ours, theirs = getattr(native, name), getattr(through_r, name)
        gap = (ours - theirs).abs().to_numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            share = gap / np.abs(theirs.to_numpy())
        i, j = (int(k) for k in np.unravel_index(int(np.nanargmax(gap)), gap.shape))
        rows.append(
            {
                "statistic": name,
                "largest difference": float(np.nanmax(gap)),
                "relative": float(np.nanmax(np.where(gap == 0, 0, share))),
                "condition": native.show_label(ours.index[i]),
                "gene": str(ours.columns[j]),
            }
        )
    return rows
