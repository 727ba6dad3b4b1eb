"""Log-likelihoods of many requests with the work that they share done once, and the numbers of lm-eval.

trie     the token sequences of a call, neighbours where they begin alike
plan     which shared beginnings run once, and which sequences share a row
packed   rows as a model takes them: tokens, positions, who sees whom
queries  what is asked of each sequence, and the answers
parts    a model's body and head, told apart and checked
probe    whether a model gives the same numbers in packed rows
engine   the forward passes
lm       the LM for models of transformers
prefix   the LM for backends that have their own runtime
"""
