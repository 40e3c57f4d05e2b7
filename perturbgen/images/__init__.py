"""Microscope images as profiles: readers, corrections of batch effects, hit scores, evaluation, maps."""
