"""Coloured shapes in 2D: scenes, pictures, films, sentences, edits, and a grader that reads pictures and films back."""
