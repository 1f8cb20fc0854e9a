"""An output in a browser: what the viewer is told, and the server of its files."""
