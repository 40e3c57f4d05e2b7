"""Two assays of the same perturbations: spaces both can be mapped to, and an honest protocol that compares them."""
