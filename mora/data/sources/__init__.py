"""Every kind of data set, a file each: how it is recognised, and how one split of it is read."""
