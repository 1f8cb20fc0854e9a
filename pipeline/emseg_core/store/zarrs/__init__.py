"""The layout, encoding and reading of Zarr: arrays, shards, codecs and OME-Zarr metadata."""
