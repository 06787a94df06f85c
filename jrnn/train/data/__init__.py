"""Samples the examples of each training step, and transfers them to the device."""
