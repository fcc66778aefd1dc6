"""Which of the files that lie somewhere a source takes, and what those of other formats are."""
