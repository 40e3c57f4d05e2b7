"""``perturbgen baseline``: what must be beaten, and its predictions."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perturbgen.cli.options import Json, Overrides, Seed, write_predictions
from perturbgen.core.console import say, show_table
from perturbgen.core.errors import ConfigError, SchemaError, shorten
from perturbgen.core.files import check_output, require_file

if TYPE_CHECKING:
    import pandas as pd

    from perturbgen.baselines import Baseline

log = logging.getLogger(__name__)


def _baseline(
    name: Annotated[
        str | None, typer.Argument(help="Which one; without it all are listed.", show_default=False)
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(help="The DE table to learn from: de_train.parquet, or its folder."),
    ] = None,
    conditions: Annotated[
        Path | None,
        typer.Option(
            help="The conditions to predict: id_map.csv, or a csv of cell_type and compound."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Output: a parquet file, which reads as de_train.parquet does."),
    ] = None,
    overrides: Overrides = None,
    seed: Seed = 0,
    truth: Annotated[
        Path | None, typer.Option(help="The measured DE table, of ground_truth.")
    ] = None,
    pseudobulk: Annotated[
        Path | None, typer.Option(help="pseudobulk_forest: counts, from perturbgen pseudobulk.")
    ] = None,
    smiles: Annotated[
        Path | None, typer.Option(help="CSV or parquet with sm_name and SMILES, for fingerprints.")
    ] = None,
    interval: Annotated[
        float | None, typer.Option(help="Also write OUT.lower and OUT.upper of this level.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit a baseline to a table of differential expression and predict other conditions; without
    a name, list the baselines.

    With a name alone its settings are shown. In the list, the column Open Problems has the name of
    the same thing in that benchmark (its mean_across_celltypes groups by cell type); transductive
    ones look at which conditions are asked for, which a fair comparison has to say.

    To predict, --train, --conditions and --out are needed. Rows and genes are joined by their
    names, and rows of --train that are asked for are not learnt from. A condition with an unknown
    cell type or compound gets what the baseline falls back to, and is named in the log.

    Example: [bold]perturbgen baseline[/bold], then [bold]perturbgen baseline kernel_ridge[/bold]

    Example: [bold]perturbgen baseline shrunken_additive --train de_train.parquet
    --conditions id_map.csv --out predictions.parquet[/bold]

    Example: [bold]perturbgen baseline nested --set base=kernel_ridge
    --set "grid.ridge=[0.1, 0.3, 1]" --train de_train.parquet --conditions id_map.csv
    --out predictions.parquet[/bold]
    """
    import numpy as np

    from perturbgen.baselines import REGISTRY, find_baseline
    from perturbgen.data import read_conditions

    alone = not (train or conditions or out or overrides or interval)
    if name is None or alone:
        if not alone:
            raise ConfigError("which baseline?", fix="perturbgen baseline lists them")
        _show_baselines(name, as_json=as_json)
        return
    train, conditions, out = _require_files(name, train, conditions, out)
    paths = [out]
    if interval is not None:
        paths += [out.with_suffix(f".{end}{out.suffix}") for end in ("lower", "upper")]
    for path in paths:
        check_output(path, ".parquet")
    # before the fit, which may take minutes
    if interval is not None and not find_baseline(name).intervals:
        with_one = [key for key, entry in REGISTRY.items() if entry.intervals]
        raise ConfigError(
            f"{name} has no prediction intervals", fix=f"one that has: {shorten(with_one, 20)}"
        )
    model = _build(name, overrides or [], truth=truth, bulk=pseudobulk, smiles=smiles)
    wanted = read_conditions(conditions)
    table = _unasked(_read_train(train), wanted, train)
    # after reading: what is reported is the method's own time
    start = time.perf_counter()
    model.fit(table, rng=np.random.default_rng(seed))
    results = [model.predict(wanted)]
    if interval is not None:
        results += model.predict_interval(wanted, level=interval)
    seconds = time.perf_counter() - start
    for path, result in zip(paths, results, strict=True):
        write_predictions(result, path)
    row = {"baseline": name, "trained on": len(table), "predicted": len(wanted)}
    row |= {"genes": table.shape[1], "seconds": round(seconds, 2)}
    show_table([row], title=f"wrote {out}", as_json=as_json)
    chosen = vars(model).get("chosen")
    if chosen and not as_json:
        say(f"settings chosen out of fold: {chosen}")


def _require_files(
    name: str, train: Path | None, conditions: Path | None, out: Path | None
) -> tuple[Path, Path, Path]:
    """What a prediction needs."""
    if train is None or conditions is None or out is None:
        given = {"--train": train, "--conditions": conditions, "--out": out}
        absent = " ".join(option for option, path in given.items() if path is None)
        raise ConfigError(
            f"{name} does not know what to learn from, predict or write: no {absent}",
            expected=" ".join(given),
            fix=f"perturbgen baseline {name} alone shows its settings",
        )
    return train, conditions, out


def _show_baselines(name: str | None, *, as_json: bool) -> None:
    """All baselines, or the settings of one of them."""
    from perturbgen.baselines import REGISTRY, find_baseline

    if name is not None:
        entry = find_baseline(name)
        settings: list[dict[str, Any]] = []
        for key, setting in entry.settings_class.model_fields.items():
            default = setting.default
            shown = list(default) if isinstance(default, tuple) else default  # as one types it
            meaning = setting.description or ""
            settings.append({"setting": key, "default": str(shown), "meaning": meaning})
        title = f"{name}: {entry.description}" + ("" if settings else "; nothing to set")
        show_table(settings, title=title, as_json=as_json)
        return
    table: list[dict[str, Any]] = []
    for key, entry in REGISTRY.items():
        marks = ("random", "intervals", "transductive")
        notes = [f"needs --{need}" for need in entry.needs]
        notes += [mark for mark in marks if getattr(entry, mark)]
        row = {"name": key, "what": entry.description, "Open Problems": entry.open_problems or None}
        table.append(row | {"notes": ", ".join(notes)})
    show_table(table, title="baselines", as_json=as_json)


def _read_train(path: Path) -> pd.DataFrame:
    """The rows to learn from: de_train.parquet, its folder, or what perturbgen de writes."""
    from pyarrow.parquet import read_schema

    from perturbgen.compare import read_effects
    from perturbgen.data import read_de
    from perturbgen.de import DETable

    if path.is_dir() or not path.is_file():
        return read_de(path)
    if path.suffix not in (".h5ad", ".csv") and not DETable.holds(path):
        names = read_schema(path).names
        if "sm_name" in names or "compound" not in names:
            return read_de(path)
    table = read_effects(path)
    complete = table.notna().all()
    if not complete.all():
        # each cell type has its own filter; a baseline needs one set of genes
        words = "%d of %d genes were not tested in every condition, and are left out"
        log.warning(words, (~complete).sum(), len(complete))
    return table.loc[:, complete]


def _unasked(table: pd.DataFrame, wanted: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The rows but those that are asked for: a prediction that has seen them is remembering."""
    import pandas as pd

    asked = table.index.isin(pd.MultiIndex.from_frame(wanted))
    if asked.all():
        raise SchemaError(
            f"{path} holds nothing but the {asked.sum()} conditions to predict",
            expected="measured conditions beside them, to learn from",
        )
    if asked.any():
        words = "%d of the %d conditions to predict are measured in %s: not learnt from"
        log.warning(words, asked.sum(), len(wanted), path)
    return table[~asked]


def _build(
    name: str, overrides: list[str], *, truth: Path | None, bulk: Path | None, smiles: Path | None
) -> Baseline[Any]:
    """The baseline with its settings and whatever else it was given."""
    from perturbgen.baselines import find_baseline, make
    from perturbgen.core.config import merge
    from perturbgen.data import read_de, read_h5ad, read_smiles

    find_baseline(name)  # a misspelt name is told before a large file is read
    settings = merge(*overrides)
    given: dict[str, Any] = {
        "truth": None if truth is None else read_de(truth),
        "pseudobulk": None if bulk is None else read_h5ad(require_file(bulk, "pseudobulk file")),
        "smiles": None if smiles is None else read_smiles(smiles),
    }
    return make(name, **given, **settings)


VERBS = {"baseline": _baseline}
