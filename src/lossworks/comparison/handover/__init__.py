"""What a comparison hands over: the result, the report, the trained model, the recipe."""
