"""Statistics, tables, figures and the page of one's own data."""
