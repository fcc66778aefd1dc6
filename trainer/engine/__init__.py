"""Run a model under Accelerate and DeepSpeed: forward, backward, step, precision, sharding, averaging."""
