"""perturbgen: what will this perturbation do to these cells, and how sure can we be?

Importing the package is cheap; each room (``perturbgen.data``, ``perturbgen.de``, ...) brings its own libraries.
"""

__version__ = "0.1.0"
