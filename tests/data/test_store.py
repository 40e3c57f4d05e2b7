import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from perturbgen.core.errors import CountsError, InputError, SchemaError
from perturbgen.data import CountStore, CovariateEncoder, SparseRows

N, GENES = 230, 17
Make = Callable[[ad.AnnData], CountStore]


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    rng = np.random.default_rng(0)
    drawn = rng.poisson(0.4, (N, GENES)).astype(np.int32)
    drawn[3] = 0
    drawn[7, 2] = 70_000  # beyond 16 bits
    counts = sp.csr_matrix(drawn)
    obs = pd.DataFrame({"plate": rng.choice(["p", "q"], N)}, index=[f"c{i}" for i in range(N)])
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(GENES)]))


@pytest.fixture(params=["memory", "h5ad", "zarr", "device"])
def store(request: pytest.FixtureRequest, cells: ad.AnnData, tmp_path: Path) -> CountStore:
    """The same cells behind each backing; the device path runs on the CPU's tensors here."""
    encoder = CovariateEncoder.fit(cells.obs, ["plate"])
    if request.param == "memory":
        return CountStore.from_adata(cells, encoder)
    if request.param == "device":
        from dataclasses import replace

        from perturbgen.data.backing import _DeviceBacking

        memory = CountStore.from_adata(cells, encoder)
        held = memory.backing
        arrays = (held.values.astype(np.float32), held.columns.astype(np.int32), held.offsets)
        tensors = (torch.from_numpy(array) for array in arrays)
        return replace(memory, backing=_DeviceBacking(*tensors, held.shape, held))
    path = tmp_path / f"cells.{request.param}"
    cells.write_h5ad(path) if request.param == "h5ad" else write_zarr(cells, path)
    return CountStore.open(path, encoder, block=8, buffer=64)


def write_zarr(cells: ad.AnnData, path: Path) -> None:
    with warnings.catch_warnings():
        # anndata announces that its default zarr version will change
        warnings.simplefilter("ignore")
        cells.write_zarr(path)


def dense(cells: ad.AnnData) -> torch.Tensor:
    return torch.from_numpy(cells.X.toarray().astype(np.float32))


@pytest.mark.parametrize("size", [1, 32, 50, 1000])
def test_an_epoch_yields_every_cell_once_with_its_own_counts_and_codes(
    store: CountStore, cells: ad.AnnData, size: int
) -> None:
    batches = list(store.batches(size, rng=np.random.default_rng([0, 0])))
    index = torch.cat([batch.index for batch in batches])
    assert sorted(index.tolist()) == list(range(N))
    assert index.tolist() != list(range(N))
    assert [len(batch.index) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    for batch in batches:
        assert torch.equal(batch.counts, dense(cells)[batch.index])
        assert batch.counts.dtype == torch.float32
        assert (
            batch.codes.ravel().tolist()
            == (cells.obs["plate"].iloc[batch.index.numpy()] == "q").astype(int).tolist()
        )


def test_without_a_generator_cells_come_in_stored_order(store: CountStore) -> None:
    assert torch.cat([batch.index for batch in store.batches(64)]).tolist() == list(range(N))


def test_the_order_is_a_function_of_seed_and_epoch(store: CountStore) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return torch.cat(
            [batch.index for batch in store.batches(32, rng=np.random.default_rng([seed, epoch]))]
        ).tolist()

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


@pytest.mark.parametrize("skip", [0, 1, 3, 7, 8])
def test_skipping_batches_continues_where_a_run_stopped(store: CountStore, skip: int) -> None:
    whole = [batch.index.tolist() for batch in store.batches(32, rng=np.random.default_rng([5, 1]))]
    rest = [
        batch.index.tolist()
        for batch in store.batches(32, rng=np.random.default_rng([5, 1]), skip=skip)
    ]
    assert rest == whole[skip:]


def test_sparse_batches_hold_the_same_counts(store: CountStore, cells: ad.AnnData) -> None:
    for batch in store.batches(50, rng=np.random.default_rng([0, 0]), dense=False):
        assert isinstance(batch.counts, SparseRows)
        assert torch.equal(batch.counts.dense(), dense(cells)[batch.index])


def test_sparse_batches_feed_a_first_layer(store: CountStore, cells: ad.AnnData) -> None:
    weight = torch.randn(GENES, 4, generator=torch.Generator().manual_seed(0))
    batch = next(store.batches(50, dense=False))
    rows = batch.counts
    out = torch.nn.functional.embedding_bag(
        rows.columns,
        weight,
        rows.offsets,
        mode="sum",
        per_sample_weights=rows.values,
        include_last_offset=True,
    )
    torch.testing.assert_close(out, dense(cells)[:50] @ weight, rtol=1e-5, atol=1e-2)


def test_batches_may_be_kept(store: CountStore, cells: ad.AnnData) -> None:
    kept = [batch.counts for batch in store.batches(10)]
    assert torch.equal(torch.cat(kept), dense(cells))


def test_a_view_keeps_its_batch_alive(cells: ad.AnnData) -> None:
    batches = CountStore.from_adata(cells).batches(10)
    view = next(batches).counts[2:5]
    for _ in batches:
        pass
    assert torch.equal(view, dense(cells)[2:5])


@pytest.mark.parametrize("how", ["mask", "positions", "names"])
def test_a_subset_is_those_cells_in_that_order(
    store: CountStore, cells: ad.AnnData, how: str
) -> None:
    chosen = np.array([5, 100, 7, 229])
    asked = {
        "mask": np.isin(np.arange(N), chosen),
        "positions": chosen,
        "names": cells.obs_names[chosen],
    }[how]
    expected = np.sort(chosen) if how == "mask" else chosen
    part = store.subset(asked)
    assert len(part) == 4
    assert part.obs.index.tolist() == cells.obs_names[expected].tolist()
    assert (part.counts() != cells.X[expected]).nnz == 0
    batch = next(part.batches(4))
    assert torch.equal(batch.counts, dense(cells)[torch.from_numpy(expected)])
    assert torch.equal(next(part.subset([1]).batches(1)).counts[0], dense(cells)[int(expected[1])])


def test_a_file_goes_into_memory_unchanged(store: CountStore, cells: ad.AnnData) -> None:
    assert (store.to("cpu").counts() != cells.X).nnz == 0


def test_an_empty_store_has_no_batches(store: CountStore) -> None:
    assert list(store.subset([]).batches(8, rng=np.random.default_rng([0, 0]))) == []


@pytest.mark.parametrize(
    ("asked", "words"), [([N], "positions"), (["zzz"], "'zzz'"), (np.ones(3, bool), "a mask of 3")]
)
def test_cells_that_are_not_there_are_named(store: CountStore, asked: list, words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        store.subset(asked)


def test_a_batch_needs_a_cell(store: CountStore) -> None:
    with pytest.raises(SchemaError, match="at least one cell"):
        next(store.batches(0))


@pytest.mark.parametrize(
    ("value", "words"), [(0.5, "non-integers"), (-1, "negative"), (np.nan, "missing")]
)
def test_what_is_no_count_is_refused_with_its_cell_and_gene(
    cells: ad.AnnData, tmp_path: Path, value: float, words: str
) -> None:
    spoilt = cells.copy()
    values = spoilt.X.toarray().astype(np.float64)
    values[20, 4] = value
    spoilt.X = sp.csr_matrix(values)
    with pytest.raises(CountsError, match=f"(?s){words}.*'c20'.*'g4'"):
        CountStore.from_adata(spoilt)
    spoilt.write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(CountsError, match=words):
        list(CountStore.open(tmp_path / "x.h5ad").batches(32))


def test_a_file_that_cannot_be_streamed_is_refused(cells: ad.AnnData, tmp_path: Path) -> None:
    columns = cells.copy()
    columns.X = columns.X.tocsc()
    columns.write_h5ad(tmp_path / "csc.h5ad")
    with pytest.raises(InputError, match=r"csc_matrix[\s\S]*CSR"):
        CountStore.open(tmp_path / "csc.h5ad")
    (tmp_path / "text.h5ad").write_text("no HDF5")
    with pytest.raises(InputError, match="no readable HDF5"):
        CountStore.open(tmp_path / "text.h5ad")
    with pytest.raises(SchemaError, match="layers/raw"):
        cells.write_h5ad(tmp_path / "ok.h5ad")
        CountStore.open(tmp_path / "ok.h5ad", layer="raw")


def test_a_subset_of_no_cells_is_an_empty_store(store: CountStore) -> None:
    none = store.subset([])
    assert list(none.batches(8, rng=np.random.default_rng([0, 0]))) == []
    assert none.counts().shape == (0, GENES)


def test_a_negative_skip_is_refused(store: CountStore) -> None:
    with pytest.raises(SchemaError, match="skip=-1"):
        next(store.batches(8, skip=-1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_holds_the_same_counts(cells: ad.AnnData) -> None:
    for batch in (
        CountStore.from_adata(cells).to("cuda").batches(50, rng=np.random.default_rng([0, 0]))
    ):
        assert torch.equal(batch.counts.cpu(), dense(cells)[batch.index.cpu()])


def test_processes_share_every_batch_and_leave_out_what_cannot_be_shared():
    counts = sp.csr_matrix(np.arange(1, 12)[:, None])
    store = CountStore.from_adata(ad.AnnData(counts))
    whole = [batch.index.tolist() for batch in store.batches(4, rng=np.random.default_rng([0, 0]))]
    shares = [
        [
            batch.index.tolist()
            for batch in store.batches(4, rng=np.random.default_rng([0, 0]), rank=rank, ranks=2)
        ]
        for rank in (0, 1)
    ]
    assert shares == [[batch[0::2] for batch in whole], [batch[1::2] for batch in whole]]
    ten = store.subset(np.arange(9))
    assert [len(batch.index) for batch in ten.batches(4, rank=1, ranks=2)] == [2, 2]
    assert [len(batch.index) for batch in ten.batches(4)] == [4, 4, 1]
    with pytest.raises(SchemaError, match="cannot be shared by 2 processes"):
        next(store.batches(3, ranks=2))
