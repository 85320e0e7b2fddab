"""Language models and programs that tests share, each of them once."""
