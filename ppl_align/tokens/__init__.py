"""Automata and spellings over token ids: what constraints, rewards and twists read tokens with."""
