"""Kernel families: <family>.py chooses tiling and launch, <family>.cuh is the device code."""
