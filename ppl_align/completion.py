raise ImportError("the module was renamed: import from ppl_align.completions")
