<<<<<<< HEAD
"""Measured profiles that are not counts: L1000 and images, and the linear embeddings any network has to beat."""
=======
"""Perturbation profiles: L1000 expression and microscope images, and the feed that training on either takes."""
>>>>>>> l1000
