"""Training of a U-Net on a volume with known truth: the only place besides `emseg.model` that imports torch."""
