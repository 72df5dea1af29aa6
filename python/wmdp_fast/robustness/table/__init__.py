"""The table of models under attack: measures of each side by side, from records of attacks, evaluations and papers."""
