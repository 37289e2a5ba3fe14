"""Parts of narcli."""
