"""Pack radar files into an archive: survey everything, then write, resumable and byte for byte the same."""
