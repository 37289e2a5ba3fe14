"""Files of users: text, pictures, clips and tokens, and the settings inside them."""
