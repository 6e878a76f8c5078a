"""The stages, one file each; :mod:`~shrinkc.compression.stages.kinds` lists them."""
