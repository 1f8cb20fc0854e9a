"""Divide a volume into blocks and tiles, and assemble the results. This uses integers and NumPy only."""
