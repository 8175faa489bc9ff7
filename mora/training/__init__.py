"""Training: `mora.train`, `Trainer` for more, and the run folder they leave behind."""
