"""Style sheet of the console: a denser page, and the journal in the style of a log."""

CSS = """<style>
[data-testid="stMainBlockContainer"] { padding-top: 4rem; padding-bottom: 1rem; max-width: 1700px; }
[data-testid="stBottomBlockContainer"] { padding-top: 0.25rem; padding-bottom: 0.75rem; max-width: 1700px; }
[data-testid="stForm"] [data-testid="stVerticalBlock"] { gap: 0.6rem; }
.st-key-journal [data-testid="stText"], .st-key-journal [data-testid="stText"] * {
  font-family: "Source Code Pro", ui-monospace, monospace; font-size: 0.8rem; line-height: 1.5; white-space: pre;
}
.st-key-journal { flex-direction: column-reverse; justify-content: flex-start !important; }
.st-key-recent_commands p { font-size: 0.85rem; line-height: 1.45; }
.recovery { padding: 0.35rem 0 0.6rem; font-size: 0.875rem; line-height: 1.5; overflow-wrap: anywhere; }
.recovery + .recovery { border-top: 1px solid rgba(128, 128, 128, 0.25); }
.recovery .lost span { opacity: 0.65; white-space: nowrap; margin-left: 0.4rem; }
.phases { display: flex; gap: 1px; height: 0.6rem; margin: 0.4rem 0 0.25rem; min-width: 3rem; }
.phases i { flex-basis: 2px; min-width: 2px; }
.phases i:first-child { border-radius: 3px 0 0 3px; }
.phases i:last-child { border-radius: 0 3px 3px 0; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1rem; font-size: 0.8rem; font-variant-numeric: tabular-nums; }
.legend span { white-space: nowrap; }
.legend i { display: inline-block; width: 0.6rem; height: 0.6rem; border-radius: 2px; margin-right: 0.35rem; }
.checkpoints { width: 100%; border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
.checkpoints th { font-weight: 400; opacity: 0.65; text-align: right; padding: 0.15rem 0 0.15rem 0.75rem; }
.checkpoints td { text-align: right; vertical-align: top; white-space: nowrap; padding: 0.3rem 0 0.3rem 0.75rem;
  border-top: 1px solid rgba(128, 128, 128, 0.25); }
.checkpoints th:first-child, .checkpoints td:first-child { text-align: left; padding-left: 0; }
.checkpoints td:first-child { white-space: normal; overflow-wrap: anywhere; }
.checkpoints td span { display: block; opacity: 0.65; font-size: 0.8rem; }
.checkpoint, .branch { font-size: 0.875rem; line-height: 1.45; padding: 0.3rem 0; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }
.checkpoint span, .branch span { display: block; opacity: 0.65; font-size: 0.8rem; }
.branch { border-left: 2px solid rgba(128, 128, 128, 0.45); padding-left: 0.7rem; }
.checkpoint em, .branch em { font-style: normal; font-size: 0.72rem; padding: 0.05rem 0.4rem; border-radius: 0.6rem;
  background: rgba(128, 128, 128, 0.22); white-space: nowrap; }
.st-key-checkpoint_rows > div { border-top: 1px solid rgba(128, 128, 128, 0.25); }
[class*="st-key-branch_row_"] { flex-wrap: nowrap !important; }
/* A fork's page is another run's, though Streamlit takes it for the page that is open. */
[class*="st-key-branch_row_of_"] a { background: none !important; height: auto; padding: 0.3rem 0.6rem; }
[class*="st-key-branch_row_of_"] a * { font-weight: 400 !important; white-space: normal !important; }
[class*="st-key-branch_row_of_"] a p { font-size: 0.875rem; line-height: 1.45; overflow-wrap: anywhere; }
.alert { font-size: 0.875rem; line-height: 1.45; padding: 0.15rem 0 0.15rem 0.7rem; overflow-wrap: anywhere;
  border-left: 3px solid #0284c7; font-variant-numeric: tabular-nums; }
.alert.warning { border-color: #d97706; }
.alert.critical { border-color: #dc2626; }
.alert span { display: block; opacity: 0.65; font-size: 0.8rem; }
.alert em, .checkpoint em.suspect, .checkpoint em.trusted { font-style: normal; font-size: 0.72rem;
  padding: 0.05rem 0.4rem; border-radius: 0.6rem; background: rgba(2, 132, 199, 0.18); white-space: nowrap; }
.alert.warning em { background: rgba(217, 119, 6, 0.25); }
.alert.critical em, .checkpoint em.suspect { background: rgba(220, 38, 38, 0.22); }
.checkpoint em.trusted { background: rgba(22, 163, 74, 0.2); }
.earlier .alert { margin-bottom: 0.5rem; }
[class*="st-key-alert_row_"] { padding: 0.4rem 0; }
[class*="st-key-alert_row_"] + [class*="st-key-alert_row_"] { border-top: 1px solid rgba(128, 128, 128, 0.25); }
[class*="st-key-alert_row_"] button { padding: 0.1rem 0.6rem; min-height: 1.9rem; }
.sources { width: 100%; border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
.sources th { text-align: left; font-weight: 400; opacity: 0.65; }
.sources th, .sources td { padding: 0.25rem 0.9rem 0.25rem 0; border-bottom: 1px solid rgba(128, 128, 128, 0.25); }
.sources small { opacity: 0.65; }
.sources .share { position: relative; min-width: 7rem; }
.sources .share i { position: absolute; left: 0; bottom: 0.15rem; height: 3px; background: #0284c7; max-width: 6rem; }
.compared { overflow-x: auto; }
.compared th, .compared .checkpoints td:first-child { white-space: nowrap; }
.knobs td { white-space: normal; }
.checkpoints td em { font-style: normal; font-size: 0.72rem; padding: 0.05rem 0.4rem; border-radius: 0.6rem;
  background: rgba(128, 128, 128, 0.22); white-space: nowrap; }
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
