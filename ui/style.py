"""What the theme cannot say: a denser page, and a log that looks like one."""

CSS = """<style>
[data-testid="stMainBlockContainer"] { padding-top: 4rem; padding-bottom: 1rem; max-width: 1700px; }
[data-testid="stBottomBlockContainer"] { padding-top: 0.25rem; padding-bottom: 0.75rem; max-width: 1700px; }
[data-testid="stForm"] [data-testid="stVerticalBlock"] { gap: 0.6rem; }
.st-key-journal [data-testid="stText"], .st-key-journal [data-testid="stText"] * {
  font-family: "Source Code Pro", ui-monospace, monospace; font-size: 0.8rem; line-height: 1.5; white-space: pre;
}
.st-key-journal { flex-direction: column-reverse; justify-content: flex-start !important; }
.st-key-recent_commands p { font-size: 0.85rem; line-height: 1.45; }
@media (max-width: 640px) {
  .st-key-journal [data-testid="stText"], .st-key-journal [data-testid="stText"] * {
    font-size: 0.72rem; white-space: pre-wrap;
  }
  .st-key-run_header, .st-key-chart_view { gap: 0.5rem; }
  .st-key-runs_head { display: none; }
  .st-key-runs_rows [data-testid="stHorizontalBlock"] {
    flex-direction: row; flex-wrap: wrap; gap: 0.1rem 1rem; padding-bottom: 0.6rem;
    border-bottom: 1px solid rgba(128, 128, 128, 0.3);
  }
  .st-key-runs_rows [data-testid="stColumn"] { flex: 0 0 auto; width: auto; min-width: 0; }
  .st-key-runs_rows [data-testid="stColumn"]:nth-child(3) { flex: 1 0 100%; }
  .st-key-run_header button { padding: 0.2rem 0.6rem; }
}
</style>"""
