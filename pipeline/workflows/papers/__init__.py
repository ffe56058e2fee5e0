"""What goes with a model on paper: the results of its card, what an exported one does otherwise, Markdown."""
