"""Every setting of every command: frozen dataclasses with their ranges, read from YAML and the command line; no torch."""
