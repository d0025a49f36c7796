"""What keeps a training alive, and knows no experiment."""
