"""Makes a float LLaMA smaller, one stage after the other, each leaving a model that loads."""
