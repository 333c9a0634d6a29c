"""Training: module, run, stages, checkpoints, telemetry."""
