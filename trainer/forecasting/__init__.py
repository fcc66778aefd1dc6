"""From a finished run and the latest radar to a forecast in files."""
