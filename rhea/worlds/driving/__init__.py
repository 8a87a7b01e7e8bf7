"""Films that nobody here drew: a car on the tracks of Gymnasium's CarRacing, driven by a script, with its controls."""
