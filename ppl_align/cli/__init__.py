"""The command line: ``ppl-align run | compare | check | claims | models | engines | fetch | new``."""

from ppl_align.cli.app import main

__all__ = ["main"]
