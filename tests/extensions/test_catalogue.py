"""Models, metrics and baselines of other packages: found, named, and told apart from each other."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perturbgen.baselines import REGISTRY, make
from perturbgen.core.errors import ConfigError, ExtensionError
from perturbgen.evaluate import METRICS, score
from perturbgen.models import MODELS
from perturbgen.train.settings import _BUILT_IN, RunSettings

from .conftest import Install

TABLE = pd.DataFrame(
    np.arange(12.0).reshape(4, 3),
    pd.MultiIndex.from_product([["A", "B"], ["x", "y"]], names=["cell_type", "compound"]),
    list("abc"),
)
MEAN = """
import pandas as pd

class Mean:
    '''Mean of everything. And more.'''

    random = False

    def __init__(self, plus=0.0):
        self.plus = plus

    def fit(self, train, *, rng):
        self.mean = train.mean() + self.plus
        return self

    def predict(self, conditions):
        return pd.DataFrame([self.mean] * len(conditions), conditions)
"""
COMPUTE = "(np.sign(t.truth.values) == np.sign(t.prediction.values)).mean(axis=1)"
METRIC = f"""
import numpy as np
from perturbgen.evaluate import Metric

SIGNS = Metric("whatever", "Signs", "Share of genes that go the right way.",
               lambda t: {COMPUTE}, "chance: a half", higher_is_better=True, high=1)
"""


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_baseline_goes_by_its_name_and_by_its_place(install: Install) -> None:
    install("brought", MEAN, baseline_mean_of_all="brought:Mean")
    assert "mean_of_all" in list(REGISTRY)
    assert REGISTRY["mean_of_all"].description == "Mean of everything. And more"
    for name in ("mean_of_all", "brought:Mean"):
        found = make(name, plus=2).fit(TABLE, rng=rng()).predict(TABLE.index[:2])
        np.testing.assert_array_equal(found, [TABLE.mean() + 2] * 2)
    with pytest.raises(ConfigError, match="did you mean 'plus'"):
        make("mean_of_all", pluss=1)
    blend = make("blend", members=["zeros", "mean_of_all"], folds=2)
    assert blend.fit(TABLE, rng=rng()).predict(TABLE.index).shape == TABLE.shape


def test_a_file_in_the_working_directory_will_do(
    fresh: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "brought_here.py").write_text(MEAN)
    assert make("brought_here:Mean").fit(TABLE, rng=rng()).predict(TABLE.index).shape == (4, 3)
    with pytest.raises(ConfigError, match="has no 'Mena': did you mean 'Mean'"):
        make("brought_here:Mena")
    with pytest.raises(ConfigError, match="there is no module 'brought_nowhere'"):
        make("brought_nowhere:Mean")
    with pytest.raises(ConfigError, match="names no baseline"):
        make("brought_here:")


def test_a_metric_is_scored_by_the_name_that_it_was_asked_for(install: Install) -> None:
    install("brought", METRIC, metric_signs="brought:SIGNS")
    assert METRICS["signs"].name == "signs"
    found = score(TABLE, TABLE, metrics=["signs", "brought:SIGNS"])
    assert list(found.index) == ["signs", "brought:SIGNS"]
    assert (found == 1).all(axis=None)
    assert "signs" in score(TABLE, TABLE).index, "what is installed is computed"
    with pytest.raises(ConfigError, match="no metric 'sings': did you mean 'signs'"):
        score(TABLE, TABLE, metrics=["sings"])


def test_names_that_clash_are_told_and_the_rest_goes_on(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    places = {"baseline_zeros": "brought:Mean", "baseline_fine": "brought:Mean"}
    install("brought", MEAN, baseline_twice="brought:Mean", **places)
    install("brought_too", MEAN, baseline_twice="brought_too:Mean")
    with caplog.at_level(logging.WARNING, logger="perturbgen"):
        assert [name for name in REGISTRY if name not in REGISTRY.built_in] == ["fine"]
        assert list(REGISTRY) == [*REGISTRY.built_in, "fine"]
    assert len(caplog.records) == 2, "each once"
    assert "'twice' is named by brought 1.0 and by brought_too 1.0" in caplog.text
    assert "has the name of a baseline that is built in" in caplog.text
    with pytest.raises(ConfigError, match="ask for it by its place: brought:Mean"):
        make("twice")
    assert make("zeros").name == "Zeros"
    assert make("brought_too:Mean").fit(TABLE, rng=rng())


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import something_that_is_not_there", "No module named 'something_that_is_not_there'"),
        ("1 / 0", r"ZeroDivisionError: division by zero \(brought.py, line 1\)"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("SIGNS = 3", "is of type int"),
        ("def SIGNS(): return 3", "is of type int"),
    ],
)
def test_an_entry_point_that_fails_is_named_and_the_rest_goes_on(
    install: Install, caplog: pytest.LogCaptureFixture, code: str, said: str
) -> None:
    install("brought", code, metric_signs="brought:SIGNS")
    with caplog.at_level(logging.WARNING, logger="perturbgen"):
        assert score(TABLE, TABLE).shape[0] > 10
    assert "'signs'" in caplog.text
    assert "brought 1.0" in caplog.text
    with pytest.raises(ExtensionError, match=said):
        score(TABLE, TABLE, metrics=["signs"])


@pytest.mark.parametrize(
    ("compute", "said"),
    [
        ("lambda t: 1 / 0", "fails: ZeroDivisionError"),
        ("lambda t: t.truth.values.mean()", r"gives values of shape \(\)"),
        ("lambda t: np.full(len(t.groups), 7.0)", r"gives 7"),
        ("lambda t: t.truth.values.__setitem__(0, 0)", "read-only"),
        ("lambda t: 'a'", "could not convert"),
    ],
)
def test_a_metric_that_breaks_its_promise_is_named(
    install: Install, caplog: pytest.LogCaptureFixture, compute: str, said: str
) -> None:
    code = METRIC.replace(f"lambda t: {COMPUTE}", compute)
    install("brought", code, metric_signs="brought:SIGNS")
    kept = TABLE.copy()
    with pytest.raises(ExtensionError, match=rf"the metric 'signs'.*brought 1.0 .*{said}"):
        score(TABLE, TABLE, metrics=["signs"])
    pd.testing.assert_frame_equal(TABLE, kept)
    with caplog.at_level(logging.WARNING, logger="perturbgen"):
        assert "signs" not in score(TABLE, TABLE).index, "nobody asked for it: the rest goes on"
    assert "'signs' (brought:SIGNS) of brought 1.0 is left out: it " in caplog.text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("return 3", "predicts a value of type int"),
        ("return super().predict(conditions)[1:]", "misses 1 of 4 conditions: 'A | x'"),
        ("return super().predict(conditions).iloc[:, 1:]", "misses 1 of 3 genes: 'a'"),
        ("return super().predict(conditions) * float('nan')", "12 values that are missing"),
        ("return super().predict(conditions).astype(str) + 'a'", "no numbers"),
        ("return super().predict(conditions).reset_index(drop=True)", "otherwise than asked"),
        ("return 1 / 0", r"ZeroDivisionError: division by zero \(brought.py, line"),
        ("import sys; sys.exit(2)", "SystemExit: 2"),
    ],
)
def test_a_baseline_that_breaks_its_promise_is_named(
    install: Install, line: str, said: str
) -> None:
    code = f"{MEAN}\nclass Bad(Mean):\n    def predict(self, conditions):\n        {line}\n"
    install("brought", code, baseline_bad="brought:Bad")
    model = make("bad").fit(TABLE, rng=rng())
    with pytest.raises(ExtensionError, match=rf"the baseline 'bad' .*{said}"):
        model.predict(TABLE.index)


def test_a_baseline_learns_from_a_copy(install: Install) -> None:
    code = MEAN.replace("self.mean =", "train.iloc[:] = 0.0; self.mean =")
    install("brought", code, baseline_bad="brought:Mean")
    kept = TABLE.copy()
    make("bad").fit(TABLE, rng=rng())
    pd.testing.assert_frame_equal(TABLE, kept)


def test_models_by_name(install: Install) -> None:
    code = (
        "from perturbgen.models import NBVAE, LatentModel\n"
        "class Mine(NBVAE):\n"
        "    def __init__(self, *given, free=2.0, **named):\n"
        "        super().__init__(*given, **named)\n"
        "class Half(LatentModel):\n"
        "    pass\n"
    )
    install("brought", code, model_mine="brought:Mine", model_half="brought:Half")
    base = {"data": {"path": "x.h5ad"}, "model": {"kind": "mine", "settings": {"free": 1.0}}}
    assert RunSettings.load(base=base).model.settings == {"free": 1.0}
    base["model"] = {"kind": "brought:Mine"}
    assert RunSettings.load(base=base).model.settings == {"free": 2.0}, "resolved"
    base["model"] = {"kind": "mine", "settings": {"fre": 1.0}}
    with pytest.raises(ConfigError, match="did you mean 'free'"):
        RunSettings.load(base=base)
    base["model"] = {"kind": "nbvae", "settings": {"free": 1.0}}
    with pytest.raises(ConfigError, match="stand in"):
        RunSettings.load(base=base)
    base["model"] = {"kind": "half"}
    with pytest.raises(ExtensionError, match="does not say how to do: encode, forward"):
        RunSettings.load(base=base)
    base["model"] = {"kind": "nbvea"}
    with pytest.raises(ConfigError, match="there is no model 'nbvea': did you mean 'nbvae'"):
        RunSettings.load(base=base)


def test_the_models_of_the_settings_are_those_that_there_are() -> None:
    assert set(_BUILT_IN) == set(MODELS.built_in)
