"""Shapes of all matrices, and the choice of an engine for each."""
