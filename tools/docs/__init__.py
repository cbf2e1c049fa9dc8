"""The generated parts of the documents: everything that a page can take from the code, it takes from there."""
