"""Measurements side by side: a table for people, one JSON line for machines, a picture for both."""
