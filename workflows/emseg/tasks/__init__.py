"""Work of the workers: what is done to each block of a segmentation, labelling, pyramid, ingest or export."""
