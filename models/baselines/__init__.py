"""Baselines: forecasts without anything learned, or with one number learned, and those of pysteps."""
