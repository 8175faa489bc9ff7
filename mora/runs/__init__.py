"""A trained run as data: the CLIP it is of, what was adapted in it and how, and the folder it comes back from."""
