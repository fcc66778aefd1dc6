"""Read radar files: one module a format, one protocol for all (scan, survey, read)."""
