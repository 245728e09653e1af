"""Data sets, their file formats, and how their samples are shared out over clients."""
