"""What embeddings of one row say of each other: the loss that pulls them together, and ranks among all the others."""
