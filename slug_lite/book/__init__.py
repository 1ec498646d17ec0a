"""What the pages of the book use: figures, widgets, results files, variants to compare, checks of the exercises."""
