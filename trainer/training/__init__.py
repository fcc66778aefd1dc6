"""The training loop, its two tasks, their windows and their held-out evaluation."""
