"""Editing images with a trained model: what the commands counterfactual, interpolate, manipulate, ... do."""
