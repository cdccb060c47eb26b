"""Tokens on disk and in windows, and what they stand for."""
