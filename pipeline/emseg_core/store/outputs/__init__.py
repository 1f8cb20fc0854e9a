"""Outputs of a run: layout, lifecycle, finished blocks, pyramid levels and instance labels."""
