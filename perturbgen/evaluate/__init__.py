"""Metrics on arrays and labels: how good is a prediction, how good is an embedding."""
