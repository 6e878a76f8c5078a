"""Shapes of all matrices, and the engine of each: what the planner places and the generator emits."""
