"""Code bundles: a script's folder as a zip, packed by a client, uploaded by its hash, checked, kept with its runs."""
