"""Command lines -> settings, through flags from their fields; errors -> an exit status."""
