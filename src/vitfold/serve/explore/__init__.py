"""A page on which one drops a photograph and looks at what a fold makes of it."""
