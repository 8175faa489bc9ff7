"""What embeddings are worth without a head: retrieval and zero-shot classes, before and after; and the embeddings."""
