"""Train a U-Net on volumes with known truth. Besides `emseg_core.model`, only this package imports torch."""
