"""SVG pictures of memory maps, timelines, rooflines, sweeps, sensitivities and quality."""
