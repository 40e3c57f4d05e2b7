"""Networks on images: their fields and feed, their training through the one loop, their evaluation.

``IMAGES.train(settings)`` makes a run directory, ``IMAGES.resume`` goes on with one,
``load_network`` gives its network back.
"""

from perturbgen.images.network.recipe import IMAGES, ImageRun, load_network
from perturbgen.images.network.settings import ImageSettings

__all__ = ["IMAGES", "ImageRun", "ImageSettings", "load_network"]
