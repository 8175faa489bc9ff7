"""What is timed, a file per level from one operation to an epoch: `shapes` lists the cases, `build` makes one."""
