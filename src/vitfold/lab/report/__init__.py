"""One page that holds the results of many commands."""
