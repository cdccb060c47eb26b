"""Waveforms: mu-law coding, audio files read and written in blocks, and figures that describe them."""
