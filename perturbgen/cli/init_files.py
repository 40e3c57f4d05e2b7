"""What ``perturbgen init`` writes: a column map, conditions, a split, configurations."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from perturbgen.data.guess import Guesses
    from perturbgen.data.survey import Survey

_STEPS: Final = 4000  # of 128 cells: what a small model learns in
_EPOCHS: Final = (10, 200)
_WITHHELD: Final = 0.25  # of a cell type's compounds
_SHOWN: Final = 10  # conditions to predict where nothing can be withheld
_FEW: Final = 5  # compounds, of which resampling says little
_BEATEN: Final = ("zeros", "gene_mean", "compound_mean", "shrunken_additive")


def texts(
    survey: Survey, guesses: Guesses, where: tuple[str | None, str], folder: Path
) -> dict[str, str]:
    """The texts of the files that ``init`` writes to ``folder``, by name."""
    title = f"Columns of {survey.path.name}, by perturbgen init."
    columns = guesses.to_toml(where, title)
    files = {"columns.toml": columns}
    obs = seen_obs(survey, columns)
    withheld, split = _withheld(obs, guesses)
    if len(withheld):
        files["conditions.csv"] = withheld.to_csv(index=False)
    if split is not None:
        files["split.csv"] = split
        files["compare.toml"] = _comparison(survey, obs, folder)
        if len(absent := _unmeasured(obs, guesses)):
            files["unmeasured.csv"] = absent.to_csv(index=False)
    files["config.toml"] = _config(survey, obs, guesses, folder, split=split is not None)
    return files


def seen_obs(survey: Survey, columns: str) -> pd.DataFrame:
    """What was seen of obs, in our words, by the very map that is written (its text)."""
    from tempfile import TemporaryDirectory

    from perturbgen.data import our_obs

    with TemporaryDirectory() as folder:
        path = Path(folder) / "columns.toml"
        path.write_text(columns, encoding="utf-8")
        return our_obs(survey.obs, path, survey.path)


def _withheld(obs: pd.DataFrame, guesses: Guesses) -> tuple[pd.DataFrame, str | None]:
    """Conditions to predict, and the split that withholds them; none where nothing can be.

    A condition can be withheld where other cell types have its compound: a quarter of those of one
    cell type are, the one of median size.
    """
    import pandas as pd

    from perturbgen.core.tables import CONDITION, conditions_of

    if guesses.atlas:
        return pd.DataFrame(), None
    vehicle = None if guesses.vehicle is None else guesses.vehicle.value
    complete = obs.dropna(subset=list(CONDITION))
    sizes = conditions_of(complete).value_counts().rename("cells").reset_index()
    sizes = sizes.set_axis([*CONDITION, "cells"], axis=1)
    treated = sizes[sizes["compound"] != vehicle].sort_values(list(CONDITION))
    shared = treated[treated["compound"].duplicated(keep=False)]
    if shared.empty and len(pairs := _known_pairs(treated, vehicle)):
        # A combination can be predicted where each part was measured alone.
        return _split_off(pairs, sizes)
    if shared.empty:
        # half of them at the most: the others say how far to trust the model
        most = min(_SHOWN, max(1, len(treated) // 2))
        some = treated.sort_values("cells", ascending=False, kind="stable").head(most)
        return some[list(CONDITION)], None
    # of a cell type whose other compounds say how far to trust the model, if there is one
    several = shared[shared["cell_type"].map(treated["cell_type"].value_counts()) > 1]
    shared = several if len(several) else shared
    totals = shared.groupby("cell_type")["cells"].sum().sort_values()
    return _split_off(shared[shared["cell_type"] == totals.index[len(totals) // 2]], sizes)


def _split_off(own: pd.DataFrame, sizes: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """A quarter of some conditions, and the split that withholds them."""
    import pandas as pd

    from perturbgen.core.tables import CONDITION

    step = round(1 / _WITHHELD)
    chosen = own[own["compound"].rank(method="first") % step == (1 if len(own) < step else 0)]
    labels = pd.MultiIndex.from_frame(sizes[list(CONDITION)])
    hidden = labels.isin(pd.MultiIndex.from_frame(chosen[list(CONDITION)]))
    return chosen[list(CONDITION)], _split_text(labels, hidden)


def _unmeasured(obs: pd.DataFrame, guesses: Guesses) -> pd.DataFrame:
    """Cell types with the compounds that were measured in others, and not in them."""
    import pandas as pd

    from perturbgen.core.tables import CONDITION, conditions_of

    complete = obs.dropna(subset=list(CONDITION))
    pairs = pd.MultiIndex.from_product(
        [sorted(complete[name].astype(str).unique()) for name in CONDITION], names=CONDITION
    )
    absent = pairs[~pairs.isin(conditions_of(complete))].to_frame(index=False)
    vehicle = None if guesses.vehicle is None else guesses.vehicle.value
    return absent[absent["compound"] != vehicle]


def _comparison(survey: Survey, obs: pd.DataFrame, folder: Path) -> str:
    """A comparison of the model with baselines on what is withheld."""
    from perturbgen.core.files import slug

    lines = [
        "# The model beside baselines, on the conditions that split.csv withholds, by perturbgen",
        "# init. Files are looked for beside this one.",
        "[data]",
        'train = "de.parquet"  # what perturbgen de wrote',
        "[splits.withheld]",
        'kind = "file"',
        'file = "split.csv"',
        "[methods.model]",
        f"run = {_literal(f'runs/latest-{slug(survey.path.stem)}')}",
        f"cells = {_literal(os.path.relpath(survey.path, folder))}",
        *[f"[methods.{name}]" for name in _BEATEN],
    ]
    if obs["compound"].nunique() <= _FEW:
        lines += ["[score]", 'clusters = ""  # conditions of so few compounds are resampled alone']
    return "\n".join(lines) + "\n"


def _known_pairs(treated: pd.DataFrame, vehicle: str | None) -> pd.DataFrame:
    """Those of combinations whose parts were each measured alone."""
    from perturbgen.data import parts_of_label

    parts = [parts_of_label(str(name), vehicle) for name in treated["compound"]]
    alone = {own[0] for own in parts if len(own) == 1}
    return treated[[len(own) > 1 and set(own) <= alone for own in parts]]


def _split_text(labels: pd.MultiIndex, hidden: np.ndarray) -> str:
    """A split file of conditions."""
    from tempfile import TemporaryDirectory

    import numpy as np
    import pandas as pd

    from perturbgen.data import Split

    parts = pd.Series(np.where(hidden, "test", "train").astype(object), labels)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "split.csv"
        Split(
            parts.sort_index(), "conditions whose compounds, or parts, are known elsewhere"
        ).write(path)
        return path.read_text(encoding="utf-8")


def _config(
    survey: Survey, obs: pd.DataFrame, guesses: Guesses, folder: Path, *, split: bool
) -> str:
    """A training configuration, a reason beside what is not a default."""
    from perturbgen.core.files import slug

    epochs = round(min(max(_STEPS * 128 / survey.n_cells, _EPOCHS[0]), _EPOCHS[1]))
    path = os.path.relpath(survey.path, folder)
    lines = [
        f"# Training on {survey.path.name}, by perturbgen init. Paths are relative to this file.",
        f'name = "{slug(survey.path.stem)}"',
        "",
        "[data]",
        f"path = {_literal(path)}",
        'columns = "columns.toml"',
    ]
    if split:
        lines.append('split = "split.csv"  # its part "test" is what conditions.csv asks for')
        lines.append("validation = 0.1  # of the training cells")
    lines += ["", "# What the model is told of a cell."]
    for name in ("cell_type", "compound", "plate"):
        if name in obs and (name != "plate" or 1 < obs[name].nunique() <= 200):
            lines.append(f"[conditions.{name}]")
            if name == "compound" and guesses.vehicle and _has_pairs(obs, guesses):
                lines.append('encoding = "combination"  # A+B is A and B')
                lines.append(f"control = {_literal(guesses.vehicle.value)}")
    lines += [
        "",
        "[model]",
        'kind = "nbvae"  # or dgd, gaussian_vae',
        "latent = 10",
        "",
        "[model.decoder]",
        "hidden = [128]",
        "additive = true  # conditions also act on each gene directly",
        "",
        "[training]",
        f"epochs = {epochs}  # {survey.n_cells:,} cells",
        "",
        "[annealing]",
        "warmup = 0  # a latent space that fills first learns what the conditions say",
    ]
    return "\n".join(lines) + "\n"


def _has_pairs(obs: pd.DataFrame, guesses: Guesses) -> bool:
    """Whether some perturbations are combinations of others."""
    from perturbgen.data import parts_of_label

    vehicle = None if guesses.vehicle is None else guesses.vehicle.value
    names = [str(name) for name in obs["compound"].dropna().unique()]
    parts = [parts_of_label(name, vehicle) for name in names]
    single = {own[0] for own in parts if len(own) == 1}
    return any(len(own) > 1 and set(own) <= single for own in parts)


def _literal(text: str) -> str:
    return f"'{text}'" if "'" not in text else '"' + text.replace('"', '\\"') + '"'
