"""Storage: the only folder that knows Zarr, TIFF and other formats.

    volume       reads an input volume                 open_volume
    output       makes, opens and renews an output     create_output, open_output, renew_output
    ledger       an open output                        Output
    lease        one run per output                    take_lease, Token
    new_volume   writes a volume slab by slab          new_volume
    tiff         reads TIFF stacks                     open_tiff
    source       reads slices of TIFF or Zarr          open_slices
    formats      reads stacks, whatever holds them     open_stack
    exported     an image of an output, to be exported image_of
    ome_export, precomputed_export, tiff_export        write it

They stand on `place` (a path or an address), `files` and `remote` (what is below it, on a disk or an object store), `blame`
(why something failed), `nodes` (a path becomes a Zarr node), `ome` and `plain` (where voxels lie, as OME-Zarr or a plain array
says it), `channels` (which of several is read), `classes` (what viewers are told about classes), `arrays` (how emseg lays out
an array), `shard` (the bytes of a part of it), `staging` (all or nothing), `records` (documents beside the voxels), `blosc`
(chunks that are whole), `event_loop` (zarr's, at the end of the process), `chunk_cache` (chunks that the next block reads
too), and for TIFF on `slices` (the order of files), `tiff_chain` (is a file whole?), `tiff_ome` (what its OME description
claims) and `tiff_size` (the size of a voxel).
Behind `formats` are `tiff`, `png`, `mrc`, `hdf5`, and with `tensor` (arrays that tensorstore reads) `n5` and `precomputed`.
"""
