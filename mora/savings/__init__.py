"""What need not be computed, because it cannot change: see docs/savings.md."""
