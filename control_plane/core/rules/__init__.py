"""Decision rules: state and a request in, records or an error out."""
