"""Generation: from a prompt to pictures, answers and films, one token after the other."""
