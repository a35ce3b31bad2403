"""The studies: all that takes a `Run`, trained, kept in the store, tabulated, drawn and explored for a paper.

What they do with models and tensors stands in the packages below, which know nothing of runs, profiles and stores.
"""
