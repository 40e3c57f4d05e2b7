"""Real baselines, signatures and layout: read, checked, and made a semi-real experiment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from perturbgen.core.errors import InputError, SchemaError
from perturbgen.simulation import CELL_TYPES, World, build_world, preset_settings, simulate
from perturbgen.simulation.op3.baseline import _lend_to_absent, _read_baseline, _shares_of_log_means
from perturbgen.simulation.op3.layout import _CONTROLS
from perturbgen.simulation.op3.signatures import DrugSignatures, _denoise, _heavy_tailed

RNG = np.random.default_rng(0)


def write_signatures(
    path: Path, *, drugs: list[str], genes: list[str], seed: int = 0
) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(4, len(drugs), len(genes))).astype(np.float32)
    np.savez(
        path,
        Z=z,
        drugs=np.array(drugs),
        genes=np.array(genes),
        cells=np.array(["b", "nk", "t", "myeloid"]),
    )
    return z


def test_shares_come_back_from_the_means_of_logarithms() -> None:
    rng = np.random.default_rng(0)
    share = np.exp(rng.normal(0, 2, 800))
    share /= share.sum()
    size, depth, k = 2.0, 2000.0, np.arange(1, 4000)
    mean = share * depth
    pmf = stats.nbinom.pmf(k, size, (size / (size + mean))[:, None])
    log_means = pmf @ np.log1p(1e6 * k / depth)
    assert np.allclose(_shares_of_log_means(log_means), share, rtol=0.02)


def test_a_baseline_with_other_rows_or_values_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "means.csv"
    table = pd.DataFrame(1.0, index=list(CELL_TYPES), columns=["A", "B"])
    table.drop(index="B cells").to_csv(path)
    with pytest.raises(SchemaError, match="no row for 'B cells'"):
        _read_baseline(path, rng=RNG)
    table.assign(A=-1.0).to_csv(path)
    with pytest.raises(SchemaError, match="negative or missing"):
        _read_baseline(path, rng=RNG)
    with pytest.raises(InputError, match="no baseline CSV"):
        _read_baseline(tmp_path / "none.csv", rng=RNG)


def test_a_gene_without_a_baseline_takes_the_shares_of_a_rare_one() -> None:
    share = np.array([[0.0, 9, 1, 8, 7, 2, 6], [0.0, 8, 2, 7, 9, 1, 5]])
    absent = (share == 0).all(axis=0)
    lent = [
        _lend_to_absent(share, absent=absent, rng=np.random.default_rng(seed)) for seed in range(20)
    ]
    assert all((found[:, 1:] == share[:, 1:]).all() for found in lent)
    # Of six measured genes, the rarer third are those with shares 1 and 2.
    assert {tuple(found[:, 0]) for found in lent} == {(1, 2), (2, 1)}
    whole = share[:, 1:]
    assert (_lend_to_absent(whole, absent=np.zeros(6, dtype=bool), rng=RNG) == whole).all()


def test_bad_signature_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ranks.npz"
    path.write_bytes(b"PK not a zip")
    with pytest.raises(InputError, match="not a readable NPZ"):
        DrugSignatures.read(path)
    np.savez(path, Z=np.zeros((1, 2, 3)))
    with pytest.raises(SchemaError, match="lacks 'cells', 'drugs', 'genes'"):
        DrugSignatures.read(path)
    np.savez(path, Z=np.zeros((1, 2, 3)), cells=["b"], drugs=["x"], genes=["a", "b", "c"])
    with pytest.raises(SchemaError, match="has shape"):
        DrugSignatures.read(path)
    np.savez(path, Z=np.zeros((1, 1, 3)), cells=["b"], drugs=["x"], genes=["a", "b", "c"])
    with pytest.raises(SchemaError, match="no cells 'myeloid', 'nk', 't'"):
        DrugSignatures.read(path)


def test_signatures_that_share_nothing_with_the_experiment_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ranks.npz"
    write_signatures(path, drugs=["aspirin"], genes=["TP53"])
    with pytest.raises(SchemaError, match="share no drug or no gene"):
        simulate("tiny", seed=0, signatures=path)


def test_true_fold_changes_follow_the_signature_and_nothing_else_changes(tmp_path: Path) -> None:
    path = tmp_path / "ranks.npz"
    drugs, genes = (
        ["Belinostat", "Compound 003", "Compound 007"],
        [f"GENE{i:05d}" for i in range(1, 201)],
    )
    z = write_signatures(path, drugs=drugs, genes=genes)
    settings = preset_settings(
        "tiny", sources={"signatures": path}, overrides=["effects.signature_rank=12"]
    )
    world = build_world(settings, seed=0)
    assert world.kind == "semi-real"
    effects, row = world.effects.log2_fold_change, world.compound_index
    for cell, source in (("NK cells", 1), ("T cells CD8+", 2), ("B cells", 0)):
        found = effects[CELL_TYPES.index(cell), row["Compound 003"], :200]
        assert stats.spearmanr(found, z[source, 1]).statistic > 0.999
    assert (
        world.effects.compounds.loc[world.effects.compounds["real_signature"]].index.tolist()
        == drugs
    )
    assert (effects[:, row[_CONTROLS[0]]] == 0).all()


def test_the_heavy_tailed_map_keeps_order_and_has_unit_variance() -> None:
    scores = np.random.default_rng(0).uniform(size=(3, 5000))
    mapped = _heavy_tailed(scores, 4.0)
    assert stats.spearmanr(scores[1], mapped[1]).statistic == pytest.approx(1)
    assert np.allclose(mapped.std(axis=1), 1, atol=0.05)
    assert np.abs(mapped).max() > 6


def test_denoising_keeps_what_is_low_rank_and_loses_noise() -> None:
    rng = np.random.default_rng(0)
    signal = (rng.normal(size=(4 * 20, 3)) @ rng.normal(size=(3, 400))).reshape(4, 20, 400)
    assert np.allclose(_denoise(signal, 3), signal)
    noisy = signal + rng.normal(size=signal.shape)
    assert np.mean((_denoise(noisy, 3) - signal) ** 2) < 0.2 * np.mean((noisy - signal) ** 2)


def test_concordance_ranks_a_drug_with_agreeing_cells_above_noise() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4, 3, 500))
    z[:, 1] += 2 * rng.normal(size=500)
    names = (("b", "nk", "t", "myeloid"), ("x", "y", "z"), tuple(map(str, range(500))))
    found = DrugSignatures(z, *names).concordance()
    assert found.idxmax() == "y"
    assert found["y"] == pytest.approx(0.8, abs=0.1)
    assert abs(found["x"]) < 0.1


@pytest.mark.data
@pytest.mark.slow  # all 576 real wells are drawn: fewer do not have the real rows
def test_the_semi_real_experiment_carries_the_real_rows(real_data: Path, tmp_path: Path) -> None:
    op3 = real_data / "op3"
    out = simulate(
        "tiny",
        seed=0,
        out=tmp_path / "semi",
        layout=op3,
        baseline=op3 / "celltype_baseline_means.csv",
        signatures=op3 / "de_ranks_4x135x6349.npz",
        overrides=["cells.per_well=15", "expression.genes=60"],
    )
    columns = ["cell_type", "sm_name", "sm_lincs_id", "SMILES", "control"]
    train = pd.read_parquet(out / "de_train.parquet")
    pd.testing.assert_frame_equal(
        train[columns], pd.read_csv(op3 / "train_obs_614.csv"), check_dtype=False
    )
    pd.testing.assert_frame_equal(pd.read_csv(out / "id_map.csv"), pd.read_csv(op3 / "id_map.csv"))
    truth = pd.read_parquet(out / "de_truth.parquet")
    assert len(truth) == 255
    assert np.isfinite(truth.iloc[:, 3:].to_numpy()).all()
    assert np.isfinite(train.iloc[:, 5:].to_numpy()).all()
    names = (op3 / "genes_18211.txt").read_text().split()
    assert train.columns[5:].isin(names).all()
    assert "semi-real" in (out / "README.txt").read_text()
    obs = pd.read_csv(out / "adata_obs_meta.csv")
    assert obs["plate_name"].nunique() == 6
    assert obs["sm_name"].nunique() == 147


@pytest.mark.data
def test_the_op3_preset_with_everything_real_has_the_real_shape(
    real_data: Path, op3_world: World
) -> None:
    world, op3 = op3_world, real_data / "op3"
    assert world.genes == (op3 / "genes_18211.txt").read_text().split()
    assert world.effects.log2_fold_change.shape == (6, 147, 18_211)
    assert world.effects.compounds["real_signature"].sum() == 135
    # Drugs without a signature were too toxic for one: they are dealt the largest effects.
    strength = world.effects.compounds.drop(index=list(_CONTROLS))
    real = strength["real_signature"]
    assert strength.loc[~real, "strength"].min() >= strength.loc[real, "strength"].max()
