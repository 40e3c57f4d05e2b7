"""Who is trained on, who is withheld, and what is refused."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.data.splits import Split
from perturbgen.l1000.embedder.data import ConditionEncoder, EmbedProfiles
from perturbgen.l1000.embedder.recipe import _classes_of, _rankable


def table(**columns) -> EmbedProfiles:
    samples = pd.DataFrame({"perturbagen": ["a", "a", "b", "b", "c", "c", "d", "d"], **columns})
    samples.index = pd.Index([f"s{i}" for i in range(8)])
    return EmbedProfiles(np.arange(24.0).reshape(8, 3), samples, pd.Index(["1", "2", "3"]))


def test_controls_and_unlabelled_profiles_are_no_class(settings):
    found = table(
        control=[True, *[False] * 7], pert_type=["ctl_vehicle", *["trt_cp"] * 6, "trt_sh"]
    )
    found.meta.loc["s2", "perturbagen"] = None
    kept = found.treatments(settings("data.types=['trt_cp']").data)
    assert list(kept.meta.index) == ["s1", "s3", "s4", "s5", "s6"]
    np.testing.assert_array_equal(kept.dense(), found.values[[1, 3, 4, 5, 6]])
    with pytest.raises(SchemaError, match="no profile has pert_type 'trt_xpr'"):
        found.treatments(settings("data.types=['trt_xpr']").data)


def test_positive_controls_are_a_class_only_where_they_are_named(settings):
    found = table(
        pert_type=[*["trt_cp"] * 6, *["trt_poscon"] * 2],
        role=[*["treatment"] * 6, *["positive control"] * 2],
    )
    data = settings().data.__class__(path="x")
    assert set(found.treatments(data).meta["perturbagen"]) == set("abc")
    named = data.model_copy(update={"types": ("trt_cp", "trt_poscon")})
    assert set(found.treatments(named).meta["perturbagen"]) == set("abcd")
    found.meta["role"] = found.meta["role"].astype("category")
    assert len(found.treatments(data)) == 6


def test_labels_are_withheld_whole_and_the_draw_follows_the_seed(settings):
    data = settings("data.validation=0.25", "data.test=0.25").data
    parts = table().split(data, 0)
    homes = parts.groupby(table().meta["perturbagen"]).nunique()
    assert (homes == 1).all()
    assert parts.value_counts().to_dict() == {"train": 4, "validation": 2, "test": 2}
    assert parts.equals(table().split(data, 0))
    assert any(not parts.equals(table().split(data, seed)) for seed in range(1, 6))


def test_a_split_that_parts_a_label_is_refused(settings, tmp_path, screen):
    index = pd.Index([f"s{i}" for i in range(8)], name="sample")
    Split(pd.Series(["train", "val", *["train"] * 6], index), "leaky").write(tmp_path / "split.csv")
    base = {"path": str(screen), "split": str(tmp_path / "split.csv")}
    data = settings().data.__class__.model_validate(base)
    with pytest.raises(
        SchemaError, match=r"the split leaks: 1 perturbagen in more than one part: 'a'"
    ):
        table().split(data, 0)
    Split(pd.Series(["train"] * 4 + ["val"] * 2 + ["other"] * 2, index), "fine").write(
        tmp_path / "split.csv"
    )
    found = table().split(data, 0)
    assert found.tolist() == ["train"] * 4 + ["validation"] * 2 + ["unused"] * 2


def test_statistics_are_those_of_clipped_training_rows(monkeypatch):
    monkeypatch.setattr("perturbgen.l1000.embedder.data._PART", 3)
    mean, sd = table().take(np.arange(8) < 4).standard(5.0)
    clipped = table().values[:4].clip(-5, 5)
    np.testing.assert_allclose(mean, clipped.mean(0), rtol=1e-6)
    np.testing.assert_allclose(sd, np.where(clipped.std(0) > 0, clipped.std(0), 1), rtol=1e-6)


def test_nan_profiles_and_identifiers_as_labels_are_refused():
    broken = table()
    broken.values[3, 1] = np.nan
    with pytest.raises(SchemaError, match=r"1 profiles hold NaN or infinity: 's3'"):
        broken.require_finite()
    with pytest.raises(SchemaError, match="0 of 8 training labels have 2 profiles or more"):
        _classes_of(pd.Series(list("abcdefgh")), 2)


def test_conditions_are_one_hot_and_standardised_logs(caplog):
    samples = table(cell_line=["A", "B"] * 4, dose=[0.0, 1, 10, 100, 0, 1, 10, np.nan]).meta
    encoder = ConditionEncoder.fit(samples, ["cell_line", "dose"])
    found = encoder.encode(samples)
    assert found.shape == (8, 3) == (8, encoder.width)
    np.testing.assert_array_equal(found[:2, :2], np.eye(2))
    assert found[7, 2] == 0
    assert abs(found[:7, 2].mean()) < 1e-6
    again = ConditionEncoder.from_json(json.loads(json.dumps(asdict(encoder))))
    new = samples.assign(cell_line="C")
    assert (again.encode(new)[:, :2] == 0).all()
    assert "never seen in training" in caplog.text


def test_ranked_validation_keeps_labels_whole():
    labels = pd.Series(["a"] * 5 + ["b"] * 4 + ["c"] + ["d"] * 3)
    mask = _rankable(labels, 100, np.random.default_rng(0))
    assert set(labels[mask]) == {"a", "b", "d"}
    some = _rankable(labels, 8, np.random.default_rng(0))
    assert some.sum() <= 9
    assert all(some[labels == name].all() or not some[labels == name].any() for name in "abd")


def test_files_of_every_kind_give_the_same_profiles(screen, tmp_path):
    from perturbgen.l1000 import extract
    from perturbgen.simulation.screen import screen_settings, write_screen

    folder = write_screen(
        screen_settings("tiny", overrides=["biology.strength=4"]), tmp_path / "files", seed=0
    )
    gctx, meta = next(folder.glob("*.gctx")), folder / "inst_info.txt"
    extract([gctx], tmp_path / "landmarks", metadata=[meta], common_genes=True)
    one, two, three = (
        EmbedProfiles.read(screen),
        EmbedProfiles.read(gctx, meta),
        EmbedProfiles.read(tmp_path / "landmarks"),
    )
    assert one.features.equals(two.features)
    order = three.features.get_indexer(one.features)
    for other in (two.dense(), three.dense()[:, order]):
        np.testing.assert_allclose(one.dense(), other, atol=1e-5)
    assert (one.meta["perturbagen"].astype(str) == three.meta["perturbagen"].astype(str)).all()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.encoder={kind='mlp',depth=3}", "'depth' is no setting of a mlp encoder"),
        ("model.head={kind='adacos',margin=0.5}", "adacos has no margin"),
        ("model.head.easy=true", "'easy' is of arcface"),
        ("training.per_class=2", "'per_class' is of the balanced sampler"),
        ("training={sampler='balanced',batch_size=18}", "do not hold whole classes of 4"),
        ("data.fold=2", "'fold' is of a leakproof split"),
        ("data.split=a.csv", "would be ignored"),
        ("annealing.warmup=3", "of an embedding only the margin rises"),
        ("model.sizes=3", "unknown key 'model.sizes'"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(settings, override, words):
    with pytest.raises(ConfigError, match=words):
        settings(override)
