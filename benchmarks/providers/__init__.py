"""What mora-kernels is timed beside, each written or configured from its own formula."""
