"""The page where people use the model and see it think: everything it makes comes through ``serving.backend.Backend``.

One file per tab; ``page.py`` puts them together, ``texts.py`` holds every word in both languages, and a ``Shelf`` keeps
what was made or uploaded in a visit, so that each tab works on what another one made.
"""
