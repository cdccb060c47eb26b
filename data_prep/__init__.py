"""Preparation of corpora: one file per corpus, all with the stages of `data_prep.skeleton`."""
