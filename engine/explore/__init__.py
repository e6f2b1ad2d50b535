"""``diffsiam explore``: a local web page that edits the user's own images with a trained model."""
