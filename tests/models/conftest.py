import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

from perturbgen.data import Batch, CountStore, CovariateEncoder
from perturbgen.models import Conditions, CountDecoder, Covariate

N_GENES = 12


@pytest.fixture
def store() -> CountStore:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"cell_type": rng.choice(["B", "NK", "T"], 40), "compound": rng.choice(["DMSO", "X"], 40)},
        index=[f"c{i}" for i in range(40)],
    )
    counts = sparse.csr_matrix(rng.poisson(rng.gamma(1, 2, N_GENES), (40, N_GENES)))
    adata = AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))
    return CountStore.from_adata(adata, CovariateEncoder.fit(obs, ["cell_type", "compound"]))


@pytest.fixture
def batch(store: CountStore) -> Batch:
    return next(store.batches(16, dense=False))


@pytest.fixture
def conditions() -> Conditions:
    torch.manual_seed(1)
    return Conditions([Covariate("cell_type", 3), Covariate("compound", 2, "embedding", width=3)])


def decoder(conditions: Conditions, latent: int = 2, **options: object) -> CountDecoder:
    return CountDecoder(latent, (7,), N_GENES, n_conditions=conditions.width, **options)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
