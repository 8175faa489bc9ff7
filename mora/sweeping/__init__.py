"""Search over the configuration of a training: `mora.sweep`, `mora.Sweep`, and the folder they leave behind."""
