"""Train, resume, score and forecast: the four entry scripts, and the rooms that do their work."""
