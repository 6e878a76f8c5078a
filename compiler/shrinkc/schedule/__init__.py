"""Shapes, tiles and the phases of a pass: what the planner places and the generator emits."""
