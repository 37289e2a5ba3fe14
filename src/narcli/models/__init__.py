"""The networks: transformer, image tokenizer."""
