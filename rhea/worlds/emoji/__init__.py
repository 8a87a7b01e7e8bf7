"""Emoji of several drawing styles with names and keywords in English and Chinese: the first pictures not drawn here."""
