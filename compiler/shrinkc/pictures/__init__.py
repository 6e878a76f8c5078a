"""Pictures as SVG documents: the memories of a plan, where cycles go, a sweep, the quality of a run."""
