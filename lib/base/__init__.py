"""`make base`: the three small base models, trained from nothing and saved with their cards."""
