"""Data, log and processes of a training."""
