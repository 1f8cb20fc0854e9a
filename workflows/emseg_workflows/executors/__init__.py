"""Who runs the blocks: this process, or Dask."""
