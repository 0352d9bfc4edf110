"""Corpora: the embeddings of very many images, each once, none lost silently. And a page on which
one looks at folds."""
