"""What the pages of the book use: figures, widgets, results files, and the variants that chapters compare."""
