"""What a run leaves and shows besides checkpoints: its folder, cost, progress, announcements and summary."""
