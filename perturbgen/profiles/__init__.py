"""Perturbation profiles: L1000 expression and microscope images, and the feed that training on either takes."""
