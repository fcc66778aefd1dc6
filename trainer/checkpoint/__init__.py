"""Save and load a run's state, whole or not at all, in its folder and in a second place."""
