"""The thing being compressed: where its parts are, how they are changed, and how it is stored."""
