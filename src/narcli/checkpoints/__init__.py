"""Files of weights: containers, formats, loading, saving and conversion."""
