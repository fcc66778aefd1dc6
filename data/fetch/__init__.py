"""Download radar files from a weather service's interface."""
