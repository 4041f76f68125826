"""What runs a network: one interface, an engine behind each file, and the choice among them."""
