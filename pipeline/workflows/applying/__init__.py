"""What applying models has in common: what is refused before, what a request holds, what is told after."""
