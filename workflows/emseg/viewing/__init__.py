"""View an output in a browser: the viewer's state, and the server of its files."""
