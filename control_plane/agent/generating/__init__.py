"""Generators of a run's records: asked for what the model is weakest at, within a budget, beside the gateway."""
