"""What a comparison can be told: the data, the splits, the methods, the controls, the scores."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from perturbgen.baselines import find_baseline
from perturbgen.core.config import Settings
from perturbgen.core.errors import InputError, suggest
from perturbgen.core.files import require_file
from perturbgen.core.runs import find_run
from perturbgen.data import TARGETS
from perturbgen.evaluate import Metric, choose_metrics

# Strong ones that are quick: a comparison without any setting takes minutes, not hours.
_DEFAULT_METHODS: Final = (
    "zeros",
    "gene_mean",
    "compound_mean",
    "cell_type_mean",
    "additive",
    "shrunken_additive",
    "nearest_replicate",
    "bilinear_ridge",
    "pls",
    "kernel_ridge",
    "neighbours",
    "xgboost",
)
# The keys that each kind of split has a use for, beside `kind`: any other one is a mistake.
_KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "kaggle": ("targets", "known", "public", "learn", "test", "seed"),
    "compounds": ("targets", "folds", "rows", "seed"),
    "cell_types": ("cell_types", "rows"),
    "file": ("file", "test"),
}
_Level = Annotated[float, Field(gt=0, lt=1)]


class TableSettings(Settings):
    """Where the table is.

    Files are looked for in ``folder`` (without one, beside the configuration), then in the working
    directory.
    """

    folder: str = Field(
        "", description="folder of the competition's files, for instance a simulated one"
    )
    train: str = Field(
        "de_train.parquet", description="DE table: de_train.parquet, or a DE table of perturbgen de"
    )
    truth: str = Field(
        "", description="DE table of more, withheld, rows: de_truth.parquet of a simulation"
    )
    statistic: str = Field("signed_log10_p", description="statistic of a DE table of perturbgen de")
    # The benchmark's tables end at ±4; what lies beyond rules the errors where nothing is limited.
    clip: float | None = Field(
        None,
        gt=0,
        description="limit what is learnt, predicted and compared to ± this (Open Problems: 4); "
        "which genes respond is found before",
    )
    smiles: str = Field("", description="CSV or parquet with compound and SMILES, for fingerprints")
    pseudobulk: str = Field("", description="counts for pseudobulk_forest")
    conditions: str = Field(
        "", description="CSV with cell_type, compound and columns to stratify by"
    )

    def find(self, name: str, what: str) -> Path:
        """A file of the data folder, or from the working directory."""
        inside = Path(self.folder) / name
        if self.folder and not Path(self.folder).is_dir():
            raise InputError(
                f"no data folder at {self.folder}",
                expected="an existing folder",
                fix="perturbgen simulate FOLDER makes one; --data FOLDER names another",
            )
        if inside.exists():
            return inside
        return require_file(name if Path(name).exists() else inside, what)

    def find_run(self, name: str) -> Path:
        """A run directory in the data folder, or from the working directory."""
        with suppress(InputError):
            inside = find_run(Path(self.folder) / name)
            if inside.is_dir():
                return inside.absolute()
        return find_run(name).absolute()


class SplitSettings(Settings):
    """Which conditions are withheld; ``kind`` is the table's own name unless it is given."""

    kind: str = Field("", description="kaggle, compounds, cell_types or file")
    folds: int = Field(
        3, ge=2, description="compounds: folds of compounds known in the targets and elsewhere"
    )
    targets: tuple[str, ...] | None = Field(
        None,
        description="cell types to predict in; kaggle: the competition's; compounds: the sparse "
        "ones",
    )
    known: tuple[str, ...] | None = Field(
        None,
        description="kaggle: compounds known in the targets; with data.truth those of data.train",
    )
    public: int | None = Field(None, ge=0, description="kaggle: public compounds; 50, at most half")
    learn: tuple[str, ...] = Field(
        (), description="kaggle: parts learnt from besides train; Open Problems: public"
    )
    test: tuple[str, ...] = Field(
        (), description="kaggle, file: parts to predict; all that are not learnt from"
    )
    cell_types: tuple[str, ...] = Field(
        (), description="cell_types: those to leave out, one at a time; all"
    )
    rows: str = Field(
        "train", description="compounds, cell_types: train (rows of data.train) or all"
    )
    file: str = Field(
        "", description="file: a split that perturbgen split wrote, or a CSV of that form"
    )
    seed: int = Field(0, ge=0, description="of what is drawn")

    @model_validator(mode="after")
    def of_its_kind(self) -> SplitSettings:
        """The kind exists and makes use of every key."""
        if self.kind not in _KINDS:
            raise ValueError(f"there is no split {self.kind!r}: {suggest(self.kind, _KINDS)}")
        # Set to other than the default, for configurations printed by 1.0 list the defaults, too.
        fields = type(self).model_fields
        changed = {name for name in fields if getattr(self, name) != fields[name].default}
        useless = sorted(changed - {"kind", *_KINDS[self.kind]})
        if useless:
            raise ValueError(
                f"a split of kind {self.kind!r} makes no use of {', '.join(useless)}: it uses "
                f"{', '.join(_KINDS[self.kind])}"
            )
        if self.kind == "file" and not self.file:
            raise ValueError("a split of kind 'file' needs its file")
        if self.rows not in ("train", "all"):
            raise ValueError(f"rows is 'train' or 'all', not {self.rows!r}")
        return self

    @model_serializer(mode="wrap")
    def of_its_kind_alone(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The keys that its kind makes use of."""
        return {key: value for key, value in write(self).items() if key in self.uses}

    @property
    def uses(self) -> tuple[str, ...]:
        """The keys that a split of this kind makes use of."""
        return ("kind", *_KINDS[self.kind])

    @property
    def target_types(self) -> tuple[str, ...]:
        """The cell types to predict in."""
        return TARGETS if self.targets is None else self.targets


class MethodSettings(Settings):
    """A baseline with its settings, a file of predictions, or a trained run.

    The baseline's name is the table's own unless given. A run predicts through its generated cells,
    and is refused where it has seen what a split withholds.
    """

    baseline: str = Field("", description="name of a baseline (perturbgen baseline lists them)")
    settings: dict[str, Any] = Field(
        {}, description="of the baseline; of a run: estimators, replicates, latent, ..."
    )
    run: str = Field("", description="directory of a run of perturbgen train")
    cells: str = Field(
        "", description="run: h5ad of measured cells, all that it was trained on among them"
    )
    columns: str = Field(
        "", description="run: column map of other cells than its own, which its own map reads"
    )
    calibration_run: str = Field(
        "", description="run: another one, which withheld measured conditions to calibrate on"
    )
    predictions: str = Field(
        "", description="DE table of predicted rows; more rows and genes than needed may be there"
    )
    layer: str = Field("", description="layer of an h5ad of predictions")
    interpolate: bool = Field(
        False,
        description="the file is a duplicate: take its noise out of the genes that do not respond",
    )

    @model_validator(mode="after")
    def one_source(self) -> MethodSettings:
        """A baseline, a file or a run, not two of them."""
        sources = sum(map(bool, (self.baseline, self.predictions, self.run)))
        if sources > 1 or (self.predictions and self.settings):
            raise ValueError(
                "a method is a baseline or a file of predictions or a run, not two of them"
            )
        if not self.predictions and (self.layer or self.interpolate):
            raise ValueError("layer and interpolate belong to a file of predictions")
        if not self.run and (self.cells or self.columns or self.calibration_run):
            raise ValueError("cells, columns and calibration_run belong to a run")
        if self.run and not self.cells:
            raise ValueError("a run needs cells, the file of measured cells that it predicts among")
        return self


class _ControlSettings(Settings):
    """Between which methods the scores are set."""

    negatives: tuple[str, ...] = Field(("zeros",), min_length=1)
    # An interpolated duplicate is a weak one where few genes respond: seven methods passed it on
    # the smallest preset.
    positive: str = Field(
        "", description="an oracle, a replicate or a duplicate; without one, a perfect prediction"
    )
    # A single repeat is no ceiling (the transfer stack passes it), but a reader wants to see it.
    references: tuple[str, ...] = Field(
        (), description="shown without a place: a replicate beside the oracle"
    )
    baselines: tuple[str, ...] | None = Field(
        None, description="what must be beaten; all built-in baselines by default"
    )


class _ReportSettings(Settings):
    """What the report shows besides."""

    ladder: str = Field(
        "", description="CSV that experiments/oracle_ladder left: prediction, ratio"
    )


class ScoreSettings(Settings):
    """How predictions are scored."""

    metrics: tuple[str, ...] | None = Field(
        None, min_length=1, description="those to compute; all that there is enough for"
    )
    headline: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="those whose mean ranks the methods, computed in any case; the scale-free ones",
    )
    level: _Level = Field(0.05, description="p below which a gene responds")
    adjust: bool = Field(True, description="p is Benjamini-Hochberg adjusted within each condition")
    # Conditions of one compound are no independent witnesses.
    clusters: str = Field(
        "compound", description="conditions resampled together; empty: each alone"
    )
    layout: str = Field(
        "", description="column of data.conditions that says where each was measured: plates, row"
    )
    resamples: int = Field(1000, ge=1, description="bootstrap samples behind the intervals")
    intervals: tuple[_Level, ...] = Field(
        (0.5, 0.9), description="nominal levels whose coverage the report shows"
    )

    def chosen(self, *, layout: bool) -> list[Metric]:
        """The metrics to compute, those of the headline among them."""
        return choose_metrics(self.metrics, headline=self.headline, reference=True, layout=layout)


class CompareSettings(Settings):
    """A whole comparison."""

    data: TableSettings = TableSettings()
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), min_length=1, description="of the methods that draw; each is fitted with every one"
    )
    splits: dict[str, SplitSettings] = Field(
        {"compounds": SplitSettings(kind="compounds")}, min_length=1
    )
    methods: dict[str, MethodSettings] = Field(
        {name: MethodSettings(baseline=name) for name in _DEFAULT_METHODS}, min_length=1
    )
    controls: _ControlSettings = _ControlSettings()
    score: ScoreSettings = ScoreSettings()
    report: _ReportSettings = _ReportSettings()

    @classmethod
    def load(cls, path: str | Path | None = None, **options: Any) -> Self:
        """As any settings; without a folder of data, files are looked for beside the file."""
        found = super().load(path, **options)
        if path is None or found.data.folder:
            return found
        data = found.data.model_copy(update={"folder": str(Path(path).parent)})
        return found.model_copy(update={"data": data})

    @field_validator("splits", mode="before")
    @classmethod
    def kinds(cls, value: Any) -> Any:
        """A split is of the kind it is called, unless it says so itself."""
        return _kind_from_key(value, "kind")

    @field_validator("methods", mode="before")
    @classmethod
    def names(cls, value: Any) -> Any:
        """A method without a file or a run is the baseline it is called, unless it says so."""
        return _kind_from_key(value, "baseline", unless=("predictions", "run"))

    @model_validator(mode="after")
    def known_controls(self) -> CompareSettings:
        """Controls are among the methods; zeros need not be listed."""
        # A seed twice would be one job under two names, and narrow the spread over seeds.
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds repeat: {list(self.seeds)}")
        known = dict.fromkeys([*self.methods, "zeros"])
        positive, references = self.controls.positive, self.controls.references
        beaten = (*self.controls.negatives, *(self.controls.baselines or ()))
        for name in (*beaten, *references, *([positive] if positive else [])):
            if name not in known:
                raise ValueError(f"the control {name!r} is no method here: {suggest(name, known)}")
        if positive in (*beaten, *references):
            raise ValueError(
                f"{positive!r} is both a positive control and one that should be beaten"
            )
        for name in references:
            if name in beaten:
                raise ValueError(
                    f"{name!r} is both a reference without a place and one that should be beaten"
                )
        return self

    @property
    def all_methods(self) -> dict[str, MethodSettings]:
        """The methods; zeros come first where they are a control that was not listed."""
        controls = (*self.controls.negatives, *(self.controls.baselines or ()))
        if "zeros" in self.methods or "zeros" not in controls:
            return self.methods
        return {"zeros": MethodSettings(baseline="zeros"), **self.methods}

    @property
    def baselines(self) -> tuple[str, ...]:
        """The methods that must be beaten, controls aside: unless they are told, those of ours.

        What others bring (module:Class, an entry point, a file, a run) is a method.
        """
        controls = (*self.controls.negatives, self.controls.positive, *self.controls.references)
        asked = self.controls.baselines
        if asked is None:
            asked = tuple(
                name
                for name, method in self.all_methods.items()
                if method.baseline and find_baseline(method.baseline).is_bar
            )
        return tuple(name for name in asked if name not in controls)

    def to_toml(self) -> str:
        """The resolved configuration; what has no value stands there as a comment."""
        import tomli_w

        written = tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))
        tables: dict[str, Settings] = {"data": self.data, "controls": self.controls}
        tables |= {"score": self.score}
        tables |= {f"splits.{name}": split for name, split in self.splits.items()}
        for name, table in tables.items():
            written = _with_unset(written, name, table)
        return written


def _with_unset(written: str, name: str, table: Settings) -> str:
    """TOML with a comment for each key of a table that has no value, which TOML cannot say."""
    used = getattr(table, "uses", tuple(type(table).model_fields))
    unset = [
        f"# {key} = ...  ({field.description})\n"
        for key, field in type(table).model_fields.items()
        if key in used and getattr(table, key) is None
    ]
    head = f"[{name}]\n"
    return written.replace(f"\n{head}", "\n" + head + "".join(unset), 1)


def _kind_from_key(tables: Any, key: str, *, unless: tuple[str, ...] = ()) -> Any:
    """Tables in which ``key`` is their own name where neither it nor one of ``unless`` is given."""
    if not isinstance(tables, Mapping):
        return tables
    return {
        name: {key: name, **table}
        if isinstance(table, Mapping) and not any(map(table.get, unless))
        else table
        for name, table in tables.items()
    }
