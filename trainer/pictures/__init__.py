"""Draw rain, forecasts and scores."""
