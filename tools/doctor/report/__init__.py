"""The doctor's report: what is looked at for which model, all that was found, how train.py fits it, what is written."""
