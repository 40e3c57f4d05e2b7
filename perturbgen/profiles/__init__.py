"""Profiles of perturbations: what an assay says of a well, as one row of numbers."""
