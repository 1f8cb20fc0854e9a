"""Where Dask workers come from."""
