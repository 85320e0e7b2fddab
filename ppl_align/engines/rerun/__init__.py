"""A few draws of every run are executed again: is the program a function of its latents, and of each particle alone?"""
