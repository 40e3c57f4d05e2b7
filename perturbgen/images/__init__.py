"""Microscope images and their profiles: readers, matching, hit scores, evaluation, maps."""
