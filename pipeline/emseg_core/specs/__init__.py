"""Facts as frozen data: the volume, the network, the numerics. Standard library only."""
