"""Who may see the console: a login, and every request and stream held to it."""
