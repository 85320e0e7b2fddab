"""Every sequence enumerated: the truth, where there are few.

Use it where the support is small enough to list (a toy LM, or a real one with max_new_tokens=1): log Z and all
expectations come without error, and every other engine can be held against it. It stops with
one line as soon as it would go beyond `max_sequences`.
"""

from ppl_align import Enumeration

engine = Enumeration(max_sequences=100_000)
