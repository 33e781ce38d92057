"""What an answer may look like: regular expressions and JSON Schemas, checked and rewritten.

Knows no model, no tokens and no torch; `engine/` compiles what leaves here with xgrammar.
"""
