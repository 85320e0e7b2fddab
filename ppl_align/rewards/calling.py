"""placeholder, replaced below"""
def evaluate(name, fn, completion): raise RuntimeError
