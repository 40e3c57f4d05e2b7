"""Feeds: every row once, the same again after a stop, and classes in balance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from perturbgen.core.errors import ConfigError, SchemaError
from perturbgen.train.feeds import BalancedSampler, MemmapFeed, ResidentFeed


@pytest.fixture
def matrix(tmp_path: Path) -> np.ndarray:
    """1,003 rows on disk whose values tell their row."""
    np.save(
        tmp_path / "m.npy",
        np.add.outer(np.arange(1003, dtype=np.float32), np.float32([0, 0.25, 0.5])),
    )
    return np.load(tmp_path / "m.npy", mmap_mode="r")


SIZES = [
    (64, 10, 4),
    (64, 100, 2),
    (1, 50, 3),
    (1003, 7, 5),
    (5000, 100, 4),
    (300, 16, 2),
    (17, 2000, 8),
]


@pytest.mark.parametrize(("batch", "block", "mix"), SIZES)
def test_an_epoch_holds_every_row_once_with_its_own_values(
    matrix: np.ndarray, batch: int, block: int, mix: int
) -> None:
    feed = MemmapFeed(matrix, batch, seed=0, block=block, mix=mix)
    batches = list(feed.epoch(0))
    assert len(batches) == len(feed)
    assert [len(b.rows) for b in batches[:-1]] == [batch] * (len(feed) - 1)
    rows = np.concatenate([b.rows for b in batches])
    np.testing.assert_array_equal(np.sort(rows), np.arange(1003))
    np.testing.assert_array_equal(np.concatenate([b.values for b in batches]), matrix[rows])


@pytest.mark.parametrize("start", [0, 1, 5, 14, 15, 16])
def test_going_on_within_an_epoch_is_as_never_having_stopped(
    matrix: np.ndarray, start: int
) -> None:
    feed = MemmapFeed(matrix, 64, seed=3, block=20, mix=4)
    whole, rest = list(feed.epoch(2)), list(feed.epoch(2, start=start))
    assert len(rest) == len(whole) - start
    for one, other in zip(whole[start:], rest, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.values, other.values)


def test_epochs_and_seeds_differ_and_repeat(matrix: np.ndarray) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        feed = MemmapFeed(matrix, 100, seed=seed, block=20)
        return np.concatenate([b.rows for b in feed.epoch(epoch)]).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_batches_are_mixed_although_the_rows_are_sorted(matrix: np.ndarray) -> None:
    spreads = [np.ptp(b.rows) for b in MemmapFeed(matrix, 64, seed=0, block=20, mix=16).epoch(0)]
    assert np.median(spreads) > 600


@pytest.mark.parametrize("many", [True, False])
def test_a_part_of_the_rows_and_dropping_the_last_batch(
    matrix: np.ndarray, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perturbgen.train.feeds._MANY_RUNS", 0 if many else 10_000)
    chosen = np.random.default_rng(0).permutation(1003)[:500]
    feed = MemmapFeed(matrix, 64, seed=0, rows=chosen, block=30, mix=3)
    batches = list(feed.epoch(0))
    np.testing.assert_array_equal(
        np.sort(np.concatenate([b.rows for b in batches])), np.sort(chosen)
    )
    assert all((matrix[b.rows] == b.values).all() for b in batches)
    dropped = MemmapFeed(matrix, 64, seed=0, rows=chosen, drop_last=True)
    assert [len(b.rows) for b in dropped.epoch(0)] == [64] * 7 == [64] * len(dropped)


def test_a_feed_that_cannot_be_is_refused(matrix: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="batch is 0"):
        MemmapFeed(matrix, 0, seed=0)
    with pytest.raises(SchemaError, match="repeat or are not among 1,003"):
        MemmapFeed(matrix, 4, seed=0, rows=np.array([1, 1]))
    with pytest.raises(SchemaError, match="repeat or are not among"):
        MemmapFeed(matrix, 4, seed=0, rows=np.array([1003]))
    with pytest.raises(SchemaError, match="no rows"):
        MemmapFeed(matrix, 4, seed=0, rows=np.array([], dtype=int))


def test_the_reader_stops_with_its_user(matrix: np.ndarray) -> None:
    stream = MemmapFeed(matrix, 4, seed=0, block=8, mix=2).epoch(0)
    next(stream)
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)


def test_resident_batches_hold_every_row_once_and_resume(matrix: np.ndarray) -> None:
    data = torch.tensor(np.array(matrix[:200]), dtype=torch.float16)
    feed = ResidentFeed(data, 30, seed=1)
    whole, rest = list(feed.epoch(4)), list(feed.epoch(4, start=3))
    assert len(whole) == len(feed) == 7
    rows = torch.cat([row for row, _ in whole])
    assert rows.sort().values.tolist() == list(range(200))
    assert torch.equal(torch.cat([values for _, values in whole]), data[rows].float())
    for (a, b), (c, d) in zip(whole[3:], rest, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


def labels() -> np.ndarray:
    """Classes of 400, 40, 4, 2 and 1 rows, and 53 rows without one."""
    names = np.repeat(
        np.array(["huge", "large", "small", "pair", "single", None], dtype=object),
        [400, 40, 4, 2, 1, 53],
    )
    return names[np.random.default_rng(0).permutation(500)]


def test_every_batch_has_p_classes_of_k_rows_and_classes_are_equally_frequent() -> None:
    names = labels()
    sampler = BalancedSampler(names, classes=3, per_class=5, seed=0)
    batches = list(sampler.epoch(0))
    assert len(batches) == len(sampler) == 446 // 15
    counts: dict[str, int] = {}
    for rows in batches:
        drawn = names[rows].reshape(3, 5)
        assert (drawn == drawn[:, :1]).all()
        assert len(set(drawn[:, 0])) == 3
        for name in drawn[:, 0]:
            counts[name] = counts.get(name, 0) + 1
        for group in rows.reshape(3, 5):
            size = (names == names[group[0]]).sum()
            assert len(set(group.tolist())) == min(5, size), "no row twice before all have come"
    assert set(counts) == {"huge", "large", "small", "pair"}
    assert max(counts.values()) - min(counts.values()) < 0.5 * np.mean(list(counts.values()))


def test_the_sampler_resumes_and_repeats() -> None:
    sampler = BalancedSampler(labels(), classes=2, per_class=4, seed=7)
    whole, rest = list(sampler.epoch(1)), list(sampler.epoch(1, start=9))
    assert len(rest) == len(whole) - 9
    assert all((a == b).all() for a, b in zip(whole[9:], rest, strict=True))
    assert not all((a == b).all() for a, b in zip(whole, sampler.epoch(2), strict=True))


def test_too_few_classes_are_counted() -> None:
    with pytest.raises(SchemaError, match="4 classes have 2 rows or more, a batch needs 6"):
        BalancedSampler(labels(), classes=6, per_class=2, seed=0)
    assert len(BalancedSampler(labels(), classes=5, per_class=2, seed=0, least=1).groups) == 5
