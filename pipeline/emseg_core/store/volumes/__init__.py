"""Input volumes in Zarr: channels, voxel sizes, and reading boxes through a cache of decoded chunks."""
