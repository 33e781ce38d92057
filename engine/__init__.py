"""Owns the device: target model, KV slots, attention, noise and sampling, the step, the worker.

Imports nothing here, so that the HTTP process can use `engine.messages` without torch.
"""
