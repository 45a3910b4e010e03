"""The torch side: a trained model becomes a verified package in the model store. Never part of a bento."""
