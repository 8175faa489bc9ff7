"""The verbs on one model: put adapters in, look at them, take them out."""
