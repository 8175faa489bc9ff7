"""`mora demo`: the whole job on the built-in drawings and the built-in tiny CLIP, next to its baselines."""
