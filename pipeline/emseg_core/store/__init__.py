"""Storage: the only part of emseg that knows Zarr, TIFF and other file formats.

- `files`: access to files on a disk or an object store: addresses, atomic writes, leases, records, classification of errors
- `zarrs`: layout, encoding and metadata of Zarr: arrays, shards, codecs, OME-Zarr
- `volumes`: input volumes in Zarr: channels, voxel sizes, cached reading of boxes
- `stacks`: input formats that are converted to Zarr: TIFF, PNG, MRC, HDF5, N5, precomputed, arrays in memory
- `outputs`: outputs of runs: layout, lifecycle, finished blocks, pyramid levels, instance labels
- `exports`: output formats: OME-Zarr, TIFF, precomputed, and the volume that an ingest writes
"""
