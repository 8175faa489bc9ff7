"""Names of targets, and values that are the same for every tower or one for each."""
