"""The report room: statistics, figures drawn from CSV tables alone, claims and their Markdown tables."""
