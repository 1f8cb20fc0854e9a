"""How Zarr is laid out, encoded and read: arrays, shards, codecs and OME-Zarr metadata."""
