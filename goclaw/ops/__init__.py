"""Operations: what a person does with a home beyond running work in it.

Owns the offline side of each. Not in here: their verbs (cli) and what of them a daemon serves.
"""
