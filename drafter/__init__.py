"""Proposes tokens: the Falcon head, drafting over a tree, and its training."""
