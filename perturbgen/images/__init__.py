"""Microscope images and their profiles: readers, matching, hit scores, evaluation, maps."""

from perturbgen.images.bbbc021 import read_bbbc021
from perturbgen.images.readers import (
    DISEASED,
    HEALTHY,
    kind_of_source,
    opened,
    read_rxrx1_metadata,
    stream_embeddings,
)
