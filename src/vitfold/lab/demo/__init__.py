"""What `vitfold demo` shows, without network and without data: a model of real size timed here, the
tokens of two photographs, and what is lost on the embedded digits."""
