"""Score runs and baselines side by side, and write tables, files and a page."""
