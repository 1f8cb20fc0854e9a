"""The records of an output about itself: its runs, their history, its completeness, and the volume it was made from."""
