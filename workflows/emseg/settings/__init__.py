"""Settings that users give, as frozen objects, and the strict TOML that holds them."""
