"""Measured profiles that are not counts: L1000 and images, and the linear embeddings any network has to beat."""
