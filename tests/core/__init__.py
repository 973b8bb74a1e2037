"""The core in milliseconds: no asyncio, no framework, no file."""
