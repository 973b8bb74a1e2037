"""Terminal output: escaping, formatting and the live panel."""
