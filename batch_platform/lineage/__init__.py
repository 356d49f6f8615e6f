"""Which source columns the columns of a query are made from, read off its text."""
