"""Procedural worlds with exact truth and exact graders: the only data that the package can make by itself."""
