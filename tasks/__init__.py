"""One file per benchmark: how it reads its annotations, asks, reads an answer, and scores."""
