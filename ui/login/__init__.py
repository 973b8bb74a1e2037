"""Authentication of the console: the login, and the check of every request and stream."""
