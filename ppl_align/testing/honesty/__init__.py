"""How often what the library states of its own answers is true: ``make honesty``."""
