"""Exit rules from the literature on tables of logits, each at the same mean cost, with paired bootstrap intervals."""
