"""`build`: kernels in `forward` and `backward`, tables in `fields`, one projection in `shares` and `launchers`."""
