"""Reading: a file or a frame becomes features and a target, checked so that what follows can rely on them."""
