"""Implementation of all commands: plans, programs, verified runs and measurements."""
