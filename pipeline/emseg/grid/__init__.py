"""How a volume is cut and put together again: integers and NumPy only."""
