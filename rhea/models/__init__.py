"""Single-device torch modules: the transformer and the vision tokenizer."""
