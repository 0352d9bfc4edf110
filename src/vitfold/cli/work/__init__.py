"""What commands do, apart from their options, so that help imports nothing of it."""
