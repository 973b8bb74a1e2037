"""Studies of data: figures and page of made-up results, and what a study of real runs records."""
