"""Study of a person's interventions: a pre-trained GPT-2 on Wikitext-2, steered from a rate that is too low."""
