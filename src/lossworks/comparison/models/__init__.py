"""What is trained: networks, how their inputs are scaled, and the line from outside."""
