"""Makes a float model smaller, one stage after the other, each leaving a model that loads."""
