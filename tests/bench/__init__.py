"""`make bench`: what a decision costs, and how the real server does under load."""
