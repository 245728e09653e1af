"""Algorithms: `base` has the two halves, `registry` finds them by name, and each paper has its own file."""
