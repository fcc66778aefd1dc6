"""Send metrics to files and services, none of which can slow or stop a run."""
