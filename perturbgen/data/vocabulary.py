"""The words every reader translates its own column names into."""

from __future__ import annotations

from typing import Final

# Columns of obs. `compound` is the perturbation's name, `control` is True for vehicle and positive-control wells alike;
# which compound is the vehicle (the reference of every contrast) is `adata.uns["vehicle"]`.
COLUMNS: Final = ("cell_type", "compound", "dose", "donor", "plate", "well", "row", "library", "control")
REQUIRED: Final = ("cell_type", "compound")
VEHICLE: Final = "Dimethyl Sulfoxide"

# Open Problems' and Kaggle's names for them.
KAGGLE_COLUMNS: Final = {
    "cell_type": "cell_type",
    "sm_name": "compound",
    "dose_uM": "dose",
    "donor_id": "donor",
    "plate_name": "plate",
    "well": "well",
    "row": "row",
    "library_id": "library",
    "control": "control",
}

# The released plate names are permuted against those that the organisers' own DE used (research: compute_de.ipynb).
ORGANISERS_PLATES: Final = {
    "plate_0": "plate_2",
    "plate_1": "plate_3",
    "plate_2": "plate_1",
    "plate_3": "plate_4",
    "plate_4": "plate_0",
    "plate_5": "plate_5",
}
