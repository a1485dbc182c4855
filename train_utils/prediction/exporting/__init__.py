"""A model -> one file for a runtime, with the proof that it finds there what the model finds here."""
