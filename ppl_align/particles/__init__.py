"""Weighted particles: what is read off their weights, and how they are resampled."""
