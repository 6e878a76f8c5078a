"""The stages: a file each, listed in :mod:`~shrinkc.compression.stages.kinds`."""
