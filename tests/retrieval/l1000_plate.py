"""The real LJP005 plate and the weighted connectivity score, for tests of retrieval."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd


def read_plate(data: Path) -> tuple[np.ndarray, pd.DataFrame]:
    """(351 treated wells, 978 genes) level-4 z-scores clipped to +-10, and each well's drug."""
    path = data / "l1000" / "plates" / "LJP005_A375_24H_X1_B19_level4_n377x978.gctx"
    with h5py.File(path) as file:
        z = file["0/DATA/0/matrix"][:]
        columns = file["0/META/COL"]
        drug, kind = (
            pd.Series(columns[name][:]).str.decode("latin-1") for name in ("pert_id", "pert_type")
        )
    treated = kind.isin(["trt_cp", "trt_poscon"]).to_numpy()
    return np.clip(z[treated], -10, 10).astype(float), pd.DataFrame(
        {"drug": drug[treated].to_numpy()}
    )


def wtcs(z: np.ndarray, n: int = 50) -> np.ndarray:
    """(wells, wells) weighted connectivity of each row's n highest and n lowest genes in each
    column's ranking.
    """
    order = np.argsort(-z, axis=1, kind="stable")
    scores = np.zeros((len(z), len(z)))
    for j in range(len(z)):
        rank = np.empty(z.shape[1], int)
        rank[order[j]] = np.arange(1, z.shape[1] + 1)
        up, down = (
            enrichment(rank[genes], np.abs(z[j])[genes]) for genes in (order[:, :n], order[:, -n:])
        )
        scores[:, j] = np.where(np.sign(up) != np.sign(down), (up - down) / 2, 0)
    return scores


def enrichment(rank: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(queries,) the weighted Kolmogorov-Smirnov statistic of gene sets (queries, n) in one ranking
    of 978.
    """
    order = np.argsort(rank, axis=1)
    rank, weight = np.take_along_axis(rank, order, 1), np.take_along_axis(weight, order, 1)
    total = weight.sum(axis=1, keepdims=True)
    after = np.cumsum(weight, axis=1) / total - (rank - np.arange(1, rank.shape[1] + 1)) / (
        978 - rank.shape[1]
    )
    both = np.hstack([after, after - weight / total])
    return np.take_along_axis(both, np.abs(both).argmax(axis=1)[:, None], 1)[:, 0]
