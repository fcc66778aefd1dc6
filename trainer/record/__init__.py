"""What a run leaves and tells besides checkpoints: its folder, its cost, its summary."""
