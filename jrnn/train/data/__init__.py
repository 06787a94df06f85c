"""Which examples each step takes, and how they reach the device."""
