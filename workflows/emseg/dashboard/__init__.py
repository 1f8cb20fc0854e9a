"""The emseg page on the Dask dashboard: `reporter` runs in the driver, everything else in the scheduler's process."""
