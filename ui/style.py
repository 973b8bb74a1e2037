"""What the theme cannot say: a denser page, and a log that looks like one."""

CSS = """<style>
[data-testid="stMainBlockContainer"] { padding-top: 4.2rem; padding-bottom: 1rem; max-width: 1700px; }
[data-testid="stBottomBlockContainer"] { padding-top: 0.25rem; padding-bottom: 0.75rem; max-width: 1700px; }
.st-key-journal [data-testid="stText"] { font-family: var(--st-code-font, monospace); font-size: 0.8rem;
  line-height: 1.5; white-space: pre; }
.st-key-recent_commands p { font-size: 0.85rem; line-height: 1.45; }
</style>"""
