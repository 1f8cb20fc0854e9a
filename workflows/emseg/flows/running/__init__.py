"""Steps that commands share: draft, limits, output location, claim, stages."""
