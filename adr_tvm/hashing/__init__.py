"""Hash planes, the vectors they cut, and the statistics they are fitted to."""
