"""Study of interventions: figures and page of made-up results, what was recorded, and real short runs."""
