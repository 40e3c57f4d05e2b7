"""Networks on images: their fields and feed, their training through the one loop, their evaluation.

``IMAGES.train(settings)`` makes a run directory, ``IMAGES.resume`` goes on with one,
``IMAGES.load`` gives its network back.
"""

from perturbgen.images.network.recipe import IMAGES, ImageRun
from perturbgen.images.network.settings import ImageSettings
