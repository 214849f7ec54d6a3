"""Reading: it turns a file or a frame into checked features and a checked target."""
