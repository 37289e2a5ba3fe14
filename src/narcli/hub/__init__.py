"""The Hugging Face Hub and its cache: names, files, downloads."""
