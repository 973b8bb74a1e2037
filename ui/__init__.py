"""The Streamlit console: an HTTP client that uses the core's words."""
