"""Does the library answer as llm-d's router does? Its unit tests as data, run through the library.

``python tests/parity/run.py FILE...`` runs files of vectors. One module here for each family of components translates:
names of parameters, endpoints, keys of blocks. It never does what is under test; that is the library's.
"""
