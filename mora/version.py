"""The version of the distribution `mora-kernels`."""

__version__ = "0.1.0"
