"""Storage: the only folder that knows Zarr and TIFF.

    volume      reads an input volume            open_volume
    output      makes, reads, writes an output   create_output, open_output, remove_output
    tiff        reads TIFF stacks                open_tiff
    new_volume  writes a volume slab by slab     new_volume

They stand on `nodes` (a path becomes a Zarr node), `ome` (metadata as plain dictionaries), `arrays` (how emseg lays out
an array), `staging` (all or nothing), and for TIFF on `slices` (the order of files) and `tiff_size` (the size of a voxel).
"""
