"""Check a job before the queue does: settings, data, machine, disk, memory, checkpoints."""
