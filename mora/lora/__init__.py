"""LoRA and DoRA at the same sites as MoRA: the projection, what is kept of it, its fields of a configuration."""
