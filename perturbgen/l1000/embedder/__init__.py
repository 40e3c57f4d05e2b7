"""An embedding of expression profiles learned from their treatments (after Donner et al. 2018).

``EMBEDDING.train(settings)`` makes a run directory, ``EMBEDDING.resume`` goes on with one,
``EMBEDDING.load`` gives its network back.
"""

from perturbgen.l1000.embedder.recipe import EMBEDDING, Embedder
from perturbgen.l1000.embedder.settings import EmbedSettings
