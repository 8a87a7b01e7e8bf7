"""Rhea: native multimodal next-token prediction."""
