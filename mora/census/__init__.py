"""Which models of open_clip are adapted: every configuration, shrunk to two blocks, led through an adapter's life."""
