"""Files of published, older and partial weights -> state dicts; nothing in a file is run."""
