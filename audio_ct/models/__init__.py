"""Autoregressive models of tokens: one outer class made of parts (`audio_ct.models.token_model`)."""
