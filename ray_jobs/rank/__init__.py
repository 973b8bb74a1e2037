"""One rank's connection to the run: session, link, collectives and process setup."""
