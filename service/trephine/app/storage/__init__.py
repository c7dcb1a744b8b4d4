"""What is kept on disk: records, files, artifacts, uploads, names, and the folders that they lie in."""
