"""One file per command, to be read from top to bottom."""
