"""Two doors to a model: an OpenAI-compatible API and a page."""
