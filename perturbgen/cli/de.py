"""What ``perturbgen de`` computes: a table against a control, contrasts by formula, R's check."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from perturbgen.core.config import NonNegative, Settings
from perturbgen.core.console import show_table
from perturbgen.core.errors import ConfigError

if TYPE_CHECKING:
    from anndata import AnnData

    from perturbgen.de import DETable

log = logging.getLogger(__name__)

# what belongs to a comparison of every level with the control alone
_ALONE = {"flavour": "--flavour", "joint": "--joint"}
# what only fits of contrasts by formula know
_OF_FITS = ("block", "quality", "transform", "sizes")


class _Analysis(Settings):
    """What ``--analysis`` may say; the command line goes over it."""

    design: str | None = None
    group: str = "compound"
    control: str | None = None
    by: str | None = None
    contrasts: dict[str, str] = Field(default_factory=dict)
    standard_errors: Literal["exact", "limma"] | None = None
    treat: NonNegative | None = None
    robust: bool = False
    trend: bool = False
    normalise: str = "tmm"
    span: Annotated[float, Field(gt=0, le=1)] | Literal["adaptive"] = 0.5
    gene_filter: str | list[str] | None = None
    block: str | None = None
    quality: bool = False
    transform: Literal["voom", "logcpm", "none"] = "voom"
    sizes: str | None = None


def with_analysis(
    path: Path | None, options: Mapping[str, Any], contrast: Sequence[str], treat: float | None
) -> tuple[dict[str, Any], dict[str, str], float | None]:
    """The options where a file has said what the command line did not, the contrasts, ``treat``."""
    told = _Analysis() if path is None else _Analysis.load(path, fix="perturbgen de --help")
    found, unsaid = dict(options), _Analysis()
    found |= {name: getattr(told, name) for name in told.changed(_OF_FITS)}
    elsewhere = {"contrasts", "treat", "standard_errors", *_OF_FITS}
    for name in set(_Analysis.model_fields) - elsewhere:
        if found[name] in (None, getattr(unsaid, name)):
            found[name] = getattr(told, name) or None
    found["contrasts"] = found["contrasts"] or told.standard_errors
    wanted = dict(told.contrasts)
    for text in contrast:
        name, _, formula = text.partition("=")
        name = name.strip()
        if not name or ("=" in text and not formula.strip()):
            raise ConfigError(
                f"--contrast {text!r} has no {'formula' if name else 'name'}",
                expected="NAME=FORMULA",
                fix='--contrast "ab=drugA - drugB"',
            )
        wanted[name] = formula.strip() or name
    return found, wanted, told.treat if treat is None else treat


def read_span(text: str) -> float | str:
    """A lowess span: a number, or adaptive."""
    try:
        return text if text == "adaptive" else float(text)
    except ValueError:
        raise ConfigError(
            f"--span {text!r} is no number", expected="a number in (0, 1], or adaptive"
        ) from None


def make_table(
    adata: AnnData,
    *,
    flavour: str | None,
    rename_plates: bool,
    control: str | None,
    wanted: Mapping[str, str] | None = None,
    treat: float | None = None,
    **options: Any,
) -> DETable:
    """The table, in a flavour, by --design or of contrasts; None leaves an option as it is."""
    from perturbgen.core.tables import VEHICLE
    from perturbgen.de import flavour_table, limma_table

    given = {key: value for key, value in options.items() if value is not None}
    if wanted or treat is not None or not given.keys().isdisjoint(_OF_FITS):
        given |= {"flavour": flavour} if flavour else {}
        return _by_formula(adata, dict(wanted or {}), treat, control, given)
    given["control"] = control or str(adata.uns.get("vehicle", VEHICLE))
    if flavour is not None:
        return flavour_table(adata, flavour=flavour, rename_plates=rename_plates, **given)
    if not rename_plates:
        raise ConfigError(
            "--keep-plates belongs to a flavour: without one no plate is renamed",
            fix="leave it out",
        )
    if "design" not in given:
        given["design"] = _usual_design(adata, given, given["control"])
    return limma_table(adata, **given)


def _usual_design(adata: AnnData, given: Mapping[str, Any], control: str) -> str:
    from perturbgen.de import usual_design

    design = usual_design(adata.obs, group=given["group"], control=control, by=given.get("by"))
    log.info("design %s: what tells samples apart, where every contrast stays estimable", design)
    return design


def _by_formula(
    adata: AnnData,
    wanted: dict[str, str],
    treat: float | None,
    control: str | None,
    given: dict[str, Any],
) -> DETable:
    """The table of contrasts by formula; without any, of every level of the group."""
    from perturbgen.core.tables import VEHICLE
    from perturbgen.de import contrast_table

    alien = [option for name, option in _ALONE.items() if given.get(name)]
    alien += ["R (--backend r, --verify)"] if given.pop("backend", "native") == "r" else []
    if alien:
        what = f"{', '.join(alien)} has no contrasts by formula, --treat, {', '.join(_OF_FITS)}"
        raise ConfigError(what, fix="leave it out")
    group = given.pop("group")
    vehicle = control or str(adata.uns.get("vehicle", VEHICLE))
    if "design" not in given:
        given["design"] = _usual_design(adata, {**given, "group": group}, vehicle)
    if not wanted:
        if "{group}" not in given["design"]:
            raise ConfigError(
                f"the design {given['design']!r} does not say what is to be tested",
                fix="--contrast NAME=FORMULA, or {group} in the design",
            )
        levels = sorted(set(adata.obs[group].astype(str)) - {vehicle}) if group in adata.obs else []
        wanted = {level: f"`{level}` - `{vehicle}`" for level in levels}
        control = vehicle
    if "{group}" in given["design"]:
        # the vehicle that a file names is the reference where it is there
        known = group in adata.obs and vehicle in set(adata.obs[group].astype(str))
        given |= {"group": group, "control": control or (vehicle if known else None)}
    elif control is not None:
        what = f"--control {control} means nothing to the design {given['design']!r}"
        raise ConfigError(what, fix="{group} in the design, or no --control")
    return contrast_table(adata, wanted=wanted, treat=treat, **given)


def verify_backends(
    adata: AnnData, genes: int, options: dict[str, Any], *, device: str, as_json: bool
) -> None:
    """Run some genes through both backends and show how far apart the numbers are."""
    from perturbgen.de.r import compare_backends

    def make(few: AnnData, backend: str) -> DETable:
        # R computes on the processor, wherever the native backend does
        where = "cpu" if backend == "r" else device
        return make_table(few, backend=backend, device=where, **options)

    rows = compare_backends(adata, genes, make)
    number = min(genes, adata.n_vars)
    show_table(rows, title=f"native against R on {number} genes", as_json=as_json)
