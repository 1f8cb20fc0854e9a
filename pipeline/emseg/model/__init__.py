"""The network, its files, and the predictor behind the port."""
