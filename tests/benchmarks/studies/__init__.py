"""Studies of steering: statistics, results that go on where they stopped, pages, and real short runs."""
