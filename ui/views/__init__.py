"""Pages of the console (not in a folder `pages`: Streamlit would run its files by itself)."""
