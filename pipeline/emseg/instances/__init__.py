"""From boundary probabilities, or classes, to segments that go on through all blocks: integers, and cc3d within a block."""
