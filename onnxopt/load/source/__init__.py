"""What a user names: a file, a folder, a sample, a model of the Hub."""
