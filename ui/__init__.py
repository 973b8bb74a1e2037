"""Streamlit console: an HTTP client of the gateway."""
