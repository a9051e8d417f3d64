"""`uniego report`: the page, its sections, and what they are made of."""
