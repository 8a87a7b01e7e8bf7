"""The vision tokenizer: a 3D MoVQGAN between pixels and grids of codes."""
