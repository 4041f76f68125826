"""What the pictures of `overlay` are made of: style, views of a volume, drawing, animation."""
