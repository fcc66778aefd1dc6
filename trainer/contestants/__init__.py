"""Who takes part in an evaluation: runs, baselines, forecasts made elsewhere, and models of other packages."""
