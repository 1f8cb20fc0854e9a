"""Output formats: OME-Zarr, TIFF, precomputed, and the volume that an ingest writes."""
