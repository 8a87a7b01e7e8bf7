"""Between people's data and token ids: the id space, text tokenizers, and pixels to codes and back."""
