"""Scores of wells and treatments in the full space of features: rescue, panels of controls, outliers."""
