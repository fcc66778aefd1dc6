"""Count forecasts against radar exactly, and compute scores and intervals from the counts."""
