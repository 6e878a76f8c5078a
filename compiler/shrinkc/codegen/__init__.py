"""Integer IR and memory plan to C tables and weight blobs."""
