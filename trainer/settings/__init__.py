"""Every setting: frozen dataclasses with their ranges, read from YAML and the command line, without torch."""
