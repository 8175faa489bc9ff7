"""What a training minimises and is scored by: labels, or pairs."""
