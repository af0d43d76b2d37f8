"""From text to stored features: models, SAEs, pooling, metadata, the store."""
