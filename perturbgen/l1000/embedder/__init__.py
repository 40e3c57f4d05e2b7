"""An embedding of expression profiles learned from who was treated with what (after Donner et al. 2018).

``train(settings)`` makes a run directory, ``resume`` goes on with one, ``load_embedder`` gives its network back.
"""

from perturbgen.l1000.embedder.run import Embedder, load_embedder, resume, train
from perturbgen.l1000.embedder.settings import EmbedSettings

__all__ = ["EmbedSettings", "Embedder", "load_embedder", "resume", "train"]
