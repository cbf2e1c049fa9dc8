"""Files are checked before anything reads them."""
