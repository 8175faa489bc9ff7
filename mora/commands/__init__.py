"""The commands of `mora`, a file each: `add` declares its arguments, `run` imports what it needs and does it."""
