"""Waveforms: mu-law coding, audio files read and written in blocks, and figures that describe them."""

MAXIMUM_RATE_HZ = 768_000
"""The highest sample rate of a recording, of a store and of a model."""
