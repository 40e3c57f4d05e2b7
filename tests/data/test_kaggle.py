"""The competition's files: every count in its place, and every way a file can be broken."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perturbgen.core.errors import CountsError, InputError, SchemaError
from perturbgen.core.tables import conditions_of
from perturbgen.data import counts
from perturbgen.data.kaggle import (
    ORGANISERS_PLATES,
    read_competition,
    read_de,
    read_id_map,
    read_multiome,
)


def test_every_count_row_and_gene_is_in_its_place(kaggle: Any) -> None:
    adata = read_competition(kaggle.write())
    assert adata.X.dtype == np.int32
    assert adata.X.has_canonical_format
    np.testing.assert_array_equal(adata.X.toarray(), kaggle.counts)
    assert list(adata.obs_names) == list(kaggle.meta["obs_id"])
    assert list(adata.var_names) == kaggle.genes
    assert adata.uns["vehicle"] == "Dimethyl Sulfoxide"


def test_obs_has_our_names_beside_the_originals(kaggle: Any) -> None:
    obs = read_competition(kaggle.write()).obs
    for ours, theirs in {
        "compound": "sm_name",
        "plate": "plate_name",
        "donor": "donor_id",
        "dose": "dose_uM",
    }.items():
        assert list(obs[ours]) == list(obs[theirs]) == list(kaggle.meta[theirs])
    assert set(kaggle.meta.columns) - {"obs_id"} <= set(obs.columns)
    assert obs["control"].dtype == bool
    assert isinstance(obs["compound"].dtype, pd.CategoricalDtype)


@pytest.mark.parametrize("batch", [1, 2, 5, 1000])
def test_the_order_of_the_file_and_the_size_of_batches_change_nothing(
    kaggle: Any, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counts, "_BATCH", batch)
    shuffled = kaggle.long.sample(frac=1, random_state=np.random.default_rng(batch))
    np.testing.assert_array_equal(
        read_competition(kaggle.write(long=shuffled)).X.toarray(), kaggle.counts
    )


def test_many_row_groups_of_random_counts_equal_a_pivot(kaggle: Any) -> None:
    rng = np.random.default_rng(0)
    kaggle.genes = [f"G{i}" for i in range(50)]
    kaggle.counts = rng.poisson(0.3, (6, 50))
    shuffled = pa.Table.from_pandas(
        kaggle.long.sample(frac=1, random_state=rng), preserve_index=False
    )
    kaggle.write()
    pq.write_table(shuffled, kaggle.path / "adata_train.parquet", row_group_size=7)
    np.testing.assert_array_equal(read_competition(kaggle.path).X.toarray(), kaggle.counts)


def test_genes_follow_de_train_where_there_is_no_submission_and_are_sorted_without_either(
    kaggle: Any,
) -> None:
    folder = kaggle.write(genes=False)
    assert list(read_competition(folder).var_names) == ["A1BG", "CD69", "IL2", "TP53"]
    write_de(folder, genes=["IL2", "CD69", "A1BG", "TP53"])
    adata = read_competition(folder)
    assert list(adata.var_names) == ["IL2", "CD69", "A1BG", "TP53"]
    np.testing.assert_array_equal(adata.X.toarray(), kaggle.counts[:, [3, 2, 1, 0]])


def test_exclusion_removes_exactly_the_listed_pairs_and_no_cell(kaggle: Any) -> None:
    ids = kaggle.meta["obs_id"]
    folder = kaggle.write(
        excluded=[(ids[0], "TP53"), (ids[2], "IL2"), (ids[1], "TP53"), ("stranger", "TP53")]
    )
    expected = kaggle.counts.copy()
    expected[0, 0] = expected[2, 3] = 0
    adata = read_competition(folder)
    np.testing.assert_array_equal(adata.X.toarray(), expected)
    assert adata.X.nnz == np.count_nonzero(expected)
    np.testing.assert_array_equal(
        read_competition(folder, excluded=False).X.toarray(), kaggle.counts
    )


def test_a_list_of_exclusions_that_was_cut_is_refused(kaggle: Any) -> None:
    ids = kaggle.meta["obs_id"]
    folder = kaggle.write(excluded=[(ids[0], "TP53"), (ids[2], "IL2")])
    path = folder / "adata_excluded_ids.csv"
    path.write_text(path.read_text().rstrip().removesuffix("IL2"))
    with pytest.raises(SchemaError, match="'gene' is missing in 1 rows"):
        read_competition(folder)


def test_organisers_plates_rename_ours_and_keep_theirs(kaggle: Any) -> None:
    obs = read_competition(kaggle.write(), organisers_plates=True).obs
    assert list(obs["plate_name"]) == list(kaggle.meta["plate_name"])
    assert list(obs["plate"]) == [ORGANISERS_PLATES[name] for name in kaggle.meta["plate_name"]]
    assert obs["plate"].iloc[0] == "plate_2"


def test_an_unknown_plate_has_no_organisers_name(kaggle: Any) -> None:
    kaggle.meta.loc[0, "plate_name"] = "plate_9"
    with pytest.raises(SchemaError, match="plate_9"):
        read_competition(kaggle.write(), organisers_plates=True)


def test_gzipped_tables_and_genes_called_na_are_read(kaggle: Any) -> None:
    kaggle.genes[0] = "NA"
    folder = kaggle.write(excluded=[(kaggle.meta["obs_id"][0], "NA")])
    for name in ("adata_obs_meta.csv", "sample_submission.csv", "adata_excluded_ids.csv"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    adata = read_competition(folder)
    assert adata.var_names[0] == "NA"
    assert adata.X[0, 0] == 0
    assert adata.X[2, 0] == 1


def test_stored_zeros_are_dropped_and_whole_floats_are_counts(kaggle: Any) -> None:
    zero = pd.DataFrame(
        {
            "obs_id": kaggle.meta["obs_id"][:1],
            "gene": ["ZZZ3"],
            "count": [0],
            "normalized_count": [0.0],
        }
    )
    long = pd.concat([kaggle.long, zero]).astype({"count": float})
    adata = read_competition(kaggle.write(long=long))
    assert adata.X.nnz == np.count_nonzero(kaggle.counts)
    np.testing.assert_array_equal(adata.X.toarray(), kaggle.counts)


@pytest.mark.parametrize("value", [0.31, -1.0, np.nan, np.inf, 2.0**31])
def test_a_count_that_is_none_names_cell_and_gene(kaggle: Any, value: float) -> None:
    long = kaggle.long.astype({"count": float})
    long.loc[2, "count"] = value
    with pytest.raises(
        CountsError, match=rf"cell '{long['obs_id'][2]}' has .* in gene '{long['gene'][2]}'"
    ):
        read_competition(kaggle.write(long=long))


def test_a_negative_integer_is_no_count(kaggle: Any) -> None:
    long = kaggle.long
    long.loc[0, "count"] = -3
    with pytest.raises(CountsError, match="has -3 in gene 'TP53'"):
        read_competition(kaggle.write(long=long))


def test_counts_stored_as_text_are_refused(kaggle: Any) -> None:
    with pytest.raises(CountsError, match="is of type"):
        read_competition(kaggle.write(long=kaggle.long.astype({"count": str})))


def test_a_repeated_pair_is_named(kaggle: Any) -> None:
    long = pd.concat([kaggle.long, kaggle.long.iloc[[3]]])
    pair = f"{long['obs_id'].iloc[3]}, {long['gene'].iloc[3]}"
    with pytest.raises(SchemaError, match=f"more than once: \\({pair}\\)"):
        read_competition(kaggle.write(long=long))


def test_equal_genes_of_neighbouring_cells_are_no_repetition(kaggle: Any) -> None:
    kaggle.counts = np.zeros((6, 5), int)
    kaggle.counts[:, 2] = 1
    np.testing.assert_array_equal(read_competition(kaggle.write()).X.toarray(), kaggle.counts)


def test_a_renamed_gene_is_named_with_the_nearest(kaggle: Any) -> None:
    long = kaggle.long.replace({"gene": {"CD69": "CD-69"}})
    with pytest.raises(SchemaError, match="unknown gene: 'CD-69'") as caught:
        read_competition(kaggle.write(long=long))
    assert "did you mean 'CD69'?" in str(caught.value)


def test_a_cell_absent_from_the_metadata_is_named(kaggle: Any) -> None:
    long = kaggle.long
    kaggle.meta = kaggle.meta.drop(index=2)
    kaggle.counts = np.delete(kaggle.counts, 2, axis=0)
    with pytest.raises(SchemaError, match="unknown obs_id: '002e2"):
        read_competition(kaggle.write(long=long))


def test_a_missing_label_is_an_error(kaggle: Any) -> None:
    long = kaggle.long
    long.loc[1, "gene"] = None
    with pytest.raises(SchemaError, match="'gene' is missing in 1 rows"):
        read_competition(kaggle.write(long=long))


@pytest.mark.parametrize("name", ["adata_train.parquet", "adata_obs_meta.csv"])
def test_a_missing_file_is_named(kaggle: Any, name: str) -> None:
    (kaggle.write() / name).unlink()
    with pytest.raises(InputError, match=name):
        read_competition(kaggle.path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        read_competition(tmp_path / "nowhere")


@pytest.mark.parametrize("column", ["obs_id", "gene", "count"])
def test_a_missing_column_of_counts_is_named(kaggle: Any, column: str) -> None:
    with pytest.raises(SchemaError, match=f"no column '{column}'"):
        read_competition(kaggle.write(long=kaggle.long.rename(columns={column: f"{column}_x"})))


@pytest.mark.parametrize("column", ["obs_id", "sm_name", "plate_name", "control"])
def test_a_missing_column_of_metadata_is_named_with_the_nearest(kaggle: Any, column: str) -> None:
    kaggle.write()
    kaggle.meta.rename(columns={column: f"{column}s"}).to_csv(
        kaggle.path / "adata_obs_meta.csv", index=False
    )
    with pytest.raises(SchemaError, match=f"no column '{column}'") as caught:
        read_competition(kaggle.path)
    assert f"did you mean '{column}s'?" in str(caught.value)


def test_an_empty_parquet_is_refused(kaggle: Any) -> None:
    with pytest.raises(InputError, match="no rows"):
        read_competition(kaggle.write(long=kaggle.long[:0]))


@pytest.mark.parametrize("keep", [0, 3, 200, -20])
def test_a_truncated_parquet_is_refused(kaggle: Any, keep: int) -> None:
    path = kaggle.write() / "adata_train.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"adata_train\.parquet"):
        read_competition(kaggle.path)


def test_a_damaged_page_is_refused(kaggle: Any) -> None:
    path = kaggle.write() / "adata_train.parquet"
    damaged = bytearray(path.read_bytes())
    damaged[4:60] = b"\xff" * 56
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="not a readable parquet"):
        read_competition(kaggle.path)


def test_a_truncated_gzip_is_refused(kaggle: Any) -> None:
    path = kaggle.write() / "adata_obs_meta.csv"
    rows = path.read_bytes() * 50
    path.unlink()
    path.with_name("adata_obs_meta.csv.gz").write_bytes(gzip.compress(rows)[:-30])
    with pytest.raises(InputError, match="cannot be decompressed"):
        read_competition(kaggle.path)


def test_a_truncated_gzip_of_genes_is_refused(kaggle: Any) -> None:
    path = kaggle.write() / "sample_submission.csv"
    path.with_name("sample_submission.csv.gz").write_bytes(gzip.compress(path.read_bytes())[:20])
    path.unlink()
    with pytest.raises(InputError, match="cannot be decompressed"):
        read_competition(kaggle.path)


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"obs_id\xff\xfe\x00,a\n", b'obs_id,"x\n1,2,3\n4,5']
)
def test_an_unreadable_csv_is_refused(kaggle: Any, content: bytes) -> None:
    (kaggle.write() / "adata_obs_meta.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"adata_obs_meta\.csv"):
        read_competition(kaggle.path)


def test_metadata_without_rows_are_refused(kaggle: Any) -> None:
    kaggle.write()
    kaggle.meta[:0].to_csv(kaggle.path / "adata_obs_meta.csv", index=False)
    with pytest.raises(InputError, match="no rows"):
        read_competition(kaggle.path)


def test_a_repeated_obs_id_is_named(kaggle: Any) -> None:
    kaggle.write()
    pd.concat([kaggle.meta, kaggle.meta[1:2]]).to_csv(
        kaggle.path / "adata_obs_meta.csv", index=False
    )
    with pytest.raises(SchemaError, match="1 duplicated obs_id: '001e1"):
        read_competition(kaggle.path)


def test_a_missing_value_in_the_metadata_names_its_cell(kaggle: Any) -> None:
    kaggle.meta.loc[4, "cell_type"] = None
    with pytest.raises(SchemaError, match=r"'cell_type' is missing in 1 rows .*'004e4"):
        read_competition(kaggle.write())


def test_a_control_column_that_is_no_truth_value_is_refused(kaggle: Any) -> None:
    kaggle.meta["control"] = "maybe"
    with pytest.raises(SchemaError, match="'control' holds 'maybe'"):
        read_competition(kaggle.write())


def write_de(folder: Path, *, genes: list[str], conditions: int = 3) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "cell_type": ["NK cells"] * conditions,
            "sm_name": [f"drug {i}" for i in range(conditions)],
        }
    )
    table = table.assign(sm_lincs_id="LSM-1", SMILES="C", control=False)
    values = np.arange(conditions * len(genes), dtype=float).reshape(conditions, -1)
    table = pd.concat([table, pd.DataFrame(values, columns=genes)], axis=1)
    table.to_parquet(folder / "de_train.parquet")
    return table


def test_de_table_is_labelled_by_condition_and_gene(tmp_path: Path) -> None:
    table = write_de(tmp_path, genes=["B", "A"])
    for path in (tmp_path, tmp_path / "de_train.parquet"):
        values = read_de(path)
        assert values.loc[("NK cells", "drug 1"), "A"] == table.loc[1, "A"] == 3.0
        assert list(values.columns) == ["B", "A"]
        assert values.index.names == ["cell_type", "compound"]


def test_de_table_with_a_hole_or_a_repeated_condition_is_refused(tmp_path: Path) -> None:
    table = write_de(tmp_path, genes=["B", "A"])
    table.assign(A=[0.0, np.nan, 1.0]).to_parquet(tmp_path / "de_train.parquet")
    with pytest.raises(SchemaError, match=r"'drug 1'.* no value for gene 'A'"):
        read_de(tmp_path)
    pd.concat([table, table[:1]]).to_parquet(tmp_path / "de_train.parquet")
    with pytest.raises(SchemaError, match="1 duplicated condition"):
        read_de(tmp_path)


@pytest.mark.parametrize("columns", list(itertools.permutations(["id", "cell_type", "sm_name"])))
def test_id_map_is_read_by_name_in_any_column_order(
    tmp_path: Path, columns: tuple[str, ...]
) -> None:
    table = pd.DataFrame(
        {"id": [0, 1], "cell_type": ["B cells", "NK cells"], "sm_name": ["x", "y"]}
    )
    table[list(columns)].to_csv(tmp_path / "id_map.csv", index=False)
    rows = read_id_map(tmp_path)
    assert list(rows.columns) == ["cell_type", "compound"]
    assert rows.loc[1].tolist() == ["NK cells", "y"]
    assert rows.index.name == "id"


def test_id_map_naming_an_unknown_compound_suggests_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "id_map.csv").write_text(
        "id,cell_type,sm_name\n0,B cells,Belinostat\n1,B cells,Clotrimazol\n"
    )
    with pytest.raises(SchemaError, match="unknown compounds: 'Clotrimazol'") as caught:
        read_id_map(tmp_path / "id_map.csv", compounds=["Belinostat", "Clotrimazole"])
    assert "did you mean 'Clotrimazole'?" in str(caught.value)
    with pytest.raises(SchemaError, match="unknown cell_types: 'B cells'"):
        read_id_map(tmp_path, cell_types=["NK cells"])
    assert (
        len(read_id_map(tmp_path, compounds=["Belinostat", "Clotrimazol"], cell_types=["B cells"]))
        == 2
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0,B cells,x\n0,B cells,y\n", "duplicated id"),
        ("0,B cells,x\n1,B cells,x\n", "duplicated condition"),
        ("0,B cells,x\n1,,y\n", "'cell_type' is missing"),
    ],
)
def test_id_map_with_repeated_or_missing_entries_is_refused(
    tmp_path: Path, rows: str, message: str
) -> None:
    (tmp_path / "id_map.csv").write_text("id,cell_type,sm_name\n" + rows)
    with pytest.raises(SchemaError, match=message):
        read_id_map(tmp_path)


def test_sample_submission_with_a_repeated_gene_or_without_id_is_refused(kaggle: Any) -> None:
    path = kaggle.write() / "sample_submission.csv"
    path.write_text("id,A,B,A\n0,0,0,0\n")
    with pytest.raises(SchemaError, match="1 duplicated gene: 'A'"):
        read_competition(kaggle.path)
    path.write_text("row,A,B\n0,0,0\n")
    with pytest.raises(SchemaError, match="no column 'id'"):
        read_competition(kaggle.path)


def test_multiome_reads_one_feature_type(tmp_path: Path) -> None:
    long = {
        "obs_id": ["b", "a", "a", "b"],
        "location": ["G2", "chr1:1-9", "G1", "G1"],
        "count": [4, 7, 1, 2],
    }
    pd.DataFrame(long).assign(normalized_count=0.0).to_parquet(tmp_path / "multiome_train.parquet")
    obs = pd.DataFrame({"obs_id": ["a", "b"], "cell_type": "NK cells", "donor_id": "donor_0"})
    obs.to_csv(tmp_path / "multiome_obs_meta.csv", index=False)
    var = {
        "location": ["chr1:1-9", "G1", "G2"],
        "feature_type": ["Peaks", "Gene Expression", "Gene Expression"],
    }
    pd.DataFrame(var).to_csv(tmp_path / "multiome_var_meta.csv", index=False)
    rna = read_multiome(tmp_path)
    assert list(rna.var_names) == ["G1", "G2"]
    np.testing.assert_array_equal(rna.X.toarray(), [[1, 0], [2, 4]])
    assert list(rna.obs["donor"]) == ["donor_0"] * 2
    np.testing.assert_array_equal(read_multiome(tmp_path, features="Peaks").X.toarray(), [[7], [0]])
    with pytest.raises(SchemaError, match="no feature of type 'RNA'"):
        read_multiome(tmp_path, features="RNA")


@pytest.mark.data
def test_the_real_rows_genes_and_submission_rows_are_accepted(real_data: Path) -> None:
    train = pd.read_csv(real_data / "op3" / "train_obs_614.csv")
    train = train.set_index(
        conditions_of(train, compound="sm_name", unique_in="train_obs_614.csv")
    )[["control"]]
    sizes = train.groupby("cell_type").size().to_dict()
    assert sizes == {
        "NK cells": 146,
        "T cells CD4+": 146,
        "T regulatory cells": 146,
        "T cells CD8+": 142,
        "B cells": 17,
        "Myeloid cells": 17,
    }
    compounds = train.index.get_level_values("compound").unique()
    assert len(compounds) == 146
    assert set(train[train["control"]].index.get_level_values("compound")) == {
        "Belinostat",
        "Dabrafenib",
    }
    rows = read_id_map(real_data / "op3" / "id_map.csv", compounds=compounds, cell_types=sizes)
    assert rows["cell_type"].value_counts().to_dict() == {"B cells": 128, "Myeloid cells": 127}
    assert len(pd.MultiIndex.from_frame(rows).intersection(train.index)) == 0
