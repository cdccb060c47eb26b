"""Waveforms: mu-law coding, and audio files read and written in blocks."""
