"""How a volume is divided into blocks and tiles and assembled again; integers and NumPy only."""
