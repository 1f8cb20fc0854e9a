"""Input formats that are converted to Zarr: TIFF, PNG, MRC, HDF5, N5, precomputed, and arrays in memory."""
