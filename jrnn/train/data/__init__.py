"""Sampling of the examples of each step, and their transfer to the device."""
