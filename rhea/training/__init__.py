"""Learning: one loop, two tasks behind one protocol, checkpoints that resume bitwise."""
