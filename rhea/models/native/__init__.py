"""Operators of our own for decoding on CPUs: a source in C, how it is compiled, and what calls it."""
