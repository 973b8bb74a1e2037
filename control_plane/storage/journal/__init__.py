"""Journal on disk: writer, segments, audit, export and provenance."""
