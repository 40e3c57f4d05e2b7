"""Models of cells under conditions, one file each, reading like its paper.

Each has ``forward(batch, draws)``, which returns the named terms of its objective per cell, and
``encode``, ``decode`` and ``sample``. Optimisers and files are the business of
:mod:`perturbgen.train`.
"""

from perturbgen.models.base import CountDecoder, CountParameters, LatentModel, Trainable
from perturbgen.models.batch import CellBatch, dense, sizes
from perturbgen.models.blueprint import Blueprint
from perturbgen.models.conditions import Conditions, Covariate
from perturbgen.models.dgd import BETAS, DGD
from perturbgen.models.gaussian_vae import GaussianDecoder, GaussianVAE
from perturbgen.models.nbvae import NBVAE
from perturbgen.models.registry import MODELS, build_model, own_settings
from perturbgen.nn import Draws
