"""Real files of CMap: every format is read, or refused with its reason; published numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from perturbgen.core.errors import InputError
from perturbgen.l1000 import (
    SIMILARITIES,
    GctxFile,
    extract,
    modz,
    read_gmt,
    read_leakproof,
    read_level5,
    read_plate,
    unify,
    wtcs,
)

pytestmark = pytest.mark.data

# name: (format, samples x genes, fields of samples and of genes), or why it is refused
FORMATS = {
    "col_meta_only_example_n355x355.gctx": ("gctx", (355, 355), (50, 0)),
    "gct_text_named_gctx.gctx": ("gct 1.3", (377, 978), (37, 11)),
    "metadata_writer_test.gctx": "lacks /0/DATA/0/matrix$",
    "mini_gctoo_data_matrix.gctx": "lacks /0/DATA/0/matrix, /0/META/ROW/id, /0/META/COL/id$",
    "mini_gctoo_for_testing.gct": ("gct 1.3", (6, 6), (5, 5)),
    "mini_gctoo_for_testing.gctx": ("gctx", (6, 6), (5, 5)),
    "mini_gctoo_for_testing_nometa.gctx": ("gctx", (6, 6), (0, 0)),
    "mini_gctx_with_metadata_n2x3.gctx": ("gctx", (2, 3), (2, 4)),
    "modzs_n25x50.gct": "line 2 promises 15 lines of sample metadata and 50 genes, 68 lines in "
    "all; the file holds 54",
    "modzs_n25x50.gctx": ("gctx", (25, 50), (15, 5)),
    "older_version_v1_2.gct": ("gct 1.2", (3, 5), (0, 1)),
    "row_meta_only_example_n2x1203.gctx": ("gctx", (2, 1203), (0, 50)),
    "test_n5x10.gctx": ("gctx", (5, 10), (42, 10)),
    "test_p100.gct": ("gct 1.3", (96, 96), (19, 11)),
    "test_parse_gctx_rid_entrez_id.gctx": ("gctx", (5, 5), (0, 0)),
    "test_v1point2_n5x10.gct": ("gct 1.2", (5, 10), (0, 1)),
}


@pytest.fixture
def l1000(real_data: Path) -> Path:
    """The folder of L1000 data."""
    return real_data / "l1000"


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_is_read_or_refused_with_its_reason(l1000: Path, name: str) -> None:
    expected = FORMATS[name]
    if isinstance(expected, str):
        with pytest.raises(InputError) as error:
            GctxFile(l1000 / "formats" / name).read()
        error.match(f"(?m){expected}")
        return
    with GctxFile(l1000 / "formats" / name) as file:
        data = file.to_anndata()
        assert (file.format, data.shape) == expected[:2]
        assert (data.obs.shape[1], data.var.shape[1]) == expected[2]
        backwards = file.read(samples=file.samples[::-1], genes=file.genes[::-1])
        np.testing.assert_array_equal(backwards, data.X[::-1, ::-1])
        assert np.isfinite(data.X).any()


def test_all_formats_are_in_the_list(l1000: Path) -> None:
    assert sorted(path.name for path in (l1000 / "formats").iterdir()) == sorted(FORMATS)


def test_a_copy_that_broke_off_is_refused(l1000: Path, tmp_path: Path) -> None:
    whole = (l1000 / "formats" / "test_n5x10.gctx").read_bytes()
    (tmp_path / "cut.gctx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated"):
        GctxFile(tmp_path / "cut.gctx")


def test_text_and_hdf5_of_one_table_agree(l1000: Path) -> None:
    text, hdf5 = (
        GctxFile(l1000 / "formats" / f"mini_gctoo_for_testing.{kind}").to_anndata()
        for kind in ("gct", "gctx")
    )
    np.testing.assert_array_equal(text.X, hdf5.X)
    assert text.obs.equals(hdf5.obs)
    assert text.obs_names.equals(hdf5.obs_names)


def test_doses_with_a_micro_sign_of_another_encoding(l1000: Path) -> None:
    obs = unify(GctxFile(l1000 / "formats" / "modzs_n25x50.gctx").obs)
    assert obs["dose"].notna().all()
    assert set(obs["dose_unit"]) == {"uM"}
    assert obs["dose"].max() == 10


def test_modz_reproduces_cmaps_signatures(l1000: Path) -> None:
    replicates = GctxFile(l1000 / "golden" / "distil_gct_n6x978.gctx").to_anndata().to_df()
    expected = GctxFile(l1000 / "golden" / "modzs_gct_n3x978.gctx").to_anndata()
    for row, (members, strength) in enumerate(
        zip(expected.obs["distil_id"], expected.obs["distil_ss_ngene"], strict=True)
    ):
        found = modz(replicates.loc[members.split("|")])
        assert np.abs(found.values.to_numpy() - expected.X[row]).max() < 1.15e-6
        assert found.ss_ngene == strength
    three, two = (
        modz(replicates.loc[members.split("|")]) for members in expected.obs["distil_id"][1:]
    )
    assert [round(weight, 2) for weight in three.weights] == [0.33, 0.45, 0.22]
    assert round(three.cc_q75, 2) == 0.34
    assert two.tas == pytest.approx(expected.obs["distil_tas"].iloc[2], abs=1e-6)


def test_wtcs_reproduces_cmaps_scores(l1000: Path) -> None:
    golden = l1000 / "golden"
    signatures = GctxFile(golden / "contest_modzs_ezid_n10x10174.gctx").to_anndata().to_df()
    up = read_gmt(golden / "contest_query_ezid_up_n10.gmt", suffix="_UP")
    down = read_gmt(golden / "contest_query_ezid_down_n10.gmt", suffix="_DN")
    expected = GctxFile(golden / "contest_results_n10x10.gctx").to_anndata().to_df().T
    found = wtcs(signatures, up, down).loc[expected.index, expected.columns]
    assert np.abs(found.to_numpy() - expected.to_numpy()).max() < 1.2e-7
    assert (found.to_numpy() == 0).sum() == (expected.to_numpy() == 0).sum() > 0


def test_the_plate_ljp005(l1000: Path) -> None:
    data = read_plate(l1000 / "plates" / "LJP005_A375_24H_X1_B19_level4_n377x978.gctx")
    assert data.shape == (377, 978)
    assert data.obs["role"].value_counts().to_dict() == {
        "treatment": 328,
        "control": 26,
        "positive control": 23,
    }
    assert data.obs.loc[~data.obs["control"], "perturbagen"].nunique() == 59
    assert sorted(data.obs["dose"].dropna().unique()) == [0.04, 0.12, 0.37, 1.11, 3.33, 10.0]
    assert data.var["landmark"].all()
    assert data.var_names[0] == "5720"


# Median rank quantile, share in the top 1 % and 10 %, pooled AUC: the plate's published table.
BASELINES = {
    "cosine": (0.154, 0.176, 0.420, 0.737),
    "spearman": (0.101, 0.272, 0.498, 0.770),
    "euclidean": (0.235, 0.128, 0.344, 0.683),
    "xsum": (0.174, 0.149, 0.396, 0.726),
    "wtcs": (0.197, 0.193, 0.414, 0.692),
    "wtcs-symmetric": (0.168, 0.200, 0.411, 0.712),
}


@pytest.mark.parametrize("name", list(BASELINES))
def test_similarities_reproduce_the_baselines_of_the_plate(l1000: Path, name: str) -> None:
    data = read_plate(l1000 / "plates" / "LJP005_A375_24H_X1_B19_level4_n377x978.gctx")
    data = data[~data.obs["control"].to_numpy()]
    values, labels = np.clip(data.X, -10, 10), data.obs["perturbagen"].astype(str).to_numpy()
    scores, quantiles = SIMILARITIES[name](values, values).astype(float), []
    for i, label in enumerate(labels):
        positives = scores[i, (labels == label) & (np.arange(len(labels)) != i)]
        negatives = np.sort(scores[i, labels != label])
        above = len(negatives) - np.searchsorted(negatives, positives, side="right")
        ties = np.searchsorted(negatives, positives, side="right") - np.searchsorted(
            negatives, positives
        )
        quantiles.append((above + ties / 2) / len(negatives))
    q = np.concatenate(quantiles)
    assert len(q) == 1740
    found = (np.median(q), (q <= 0.01).mean(), (q <= 0.1).mean(), 1 - q.mean())
    np.testing.assert_allclose(found, BASELINES[name], atol=0.0011)


def test_core_a_is_described_by_its_table_and_its_landmarks_are_found(
    l1000: Path, tmp_path: Path
) -> None:
    matrix = l1000 / "plates" / "CORE_A_level4_ZSPCINF_n40x12328.gctx"
    found = extract([matrix], tmp_path / "out", metadata=[l1000 / "plates" / "CORE_A_instinfo.txt"])
    assert found.values.shape == (40, 978)
    assert found.meta["moa"].nunique() > 5
    inside = read_plate(matrix)
    assert (
        inside.obs["perturbagen"].astype(str).tolist()
        == found.meta["perturbagen"].astype(str).tolist()
    )
    np.testing.assert_array_equal(inside[:, found.features].X, found.values)


def test_gene_tables_name_the_landmarks(l1000: Path, tmp_path: Path) -> None:
    matrix = l1000 / "plates" / "CORE_A_level4_ZSPCINF_n40x12328.gctx"
    plain = extract([matrix], tmp_path / "a", genes=l1000 / "meta" / "landmark_gene_ids_n978.grp")
    table = extract([matrix], tmp_path / "b", genes=l1000 / "meta" / "geneinfo_beta.txt")
    assert set(plain.features) == set(table.features)
    np.testing.assert_array_equal(plain.to_anndata()[:, table.features].X, table.values)


def test_level_5_signatures(l1000: Path) -> None:
    folder = l1000 / "plates"
    data = read_level5(
        folder / "level5_three_drugs_n272x978.npz", folder / "level5_three_drugs_n272x978_meta.tsv"
    )
    assert data.shape == (272, 978)
    assert data.obs["name"].value_counts().to_dict() == {
        "vemurafenib": 140,
        "atorvastatin": 94,
        "venlafaxine": 38,
    }
    assert data.obs["cell_line"].nunique() == 65


def test_the_25_leak_proof_splits_do_not_leak(l1000: Path) -> None:
    splits = [read_leakproof(path) for path in sorted((l1000 / "leakproof").glob("*.json"))]
    assert len(splits) == 25
    assert len({split.name for split in splits}) == 25
    assert all(len(split.folds) == 5 for split in splits)
    first = splits[0]
    assert (len(first.test.cell_lines), len(first.test.moas)) == (6, 87)
