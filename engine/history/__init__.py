"""Runs that are there: ``diffsiam runs``."""
