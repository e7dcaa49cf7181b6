"""Pictures and tables, drawn from the records alone."""
