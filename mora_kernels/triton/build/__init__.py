"""`build`: kernels in `forward` and `backward`, their tables' fields in `fields`, one projection in `launchers`."""
