"""Profiles of perturbations that are no single cells: L1000 signatures, microscope images, and what both share."""
