"""Recipes: the only place where sizes, rates and paths are written down."""
