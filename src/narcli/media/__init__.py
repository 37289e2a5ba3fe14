"""Files that people give and get: text, pictures, clips, tokens, and the settings inside them."""
