"""What is measured of a provider, and how: time, memory, launches, and the device's two ceilings."""
