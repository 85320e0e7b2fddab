"""Moving particles through a program: to its next completion, to its end, and back to a site to draw anew."""
