"""What a method costs, what it learned, and pictures of what it does: evaluations, and pages about them."""
