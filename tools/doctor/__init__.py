"""What `python -m tools.check_data` finds out about a data set, one idea a module; nothing else imports it."""
