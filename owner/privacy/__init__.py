"""Differential privacy: planning, noise, training; planted canaries."""
