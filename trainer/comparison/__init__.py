"""Compare models by their rows: differences in pairs with intervals, what may be called the best, and tables."""
